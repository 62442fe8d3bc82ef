module slmops.dev/rig/tools/pause

go 1.26.0
