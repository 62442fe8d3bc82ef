# SPDX-License-Identifier: Apache-2.0
"""Model fetcher and content-addressed store on a node; standard library only, flat memory.

Layout below the store's root (same file system, every file owned by the fetcher):

    lock                          flock: short critical sections (pins, trees, collection)
    blobs/sha256/<hex>            verified immutable file, mode 0444
    partial/<hex>.part, .json     resume state; flock on the .part is the right to download
    partial/<hex>.ahead-<start>   bytes that came before their turn, over parallel connections
    partial/<hex>.peers           marker: that fetch waits for other nodes or takes from them
    trees/<manifest-hex>/<path>   hard links to blobs; what a server mounts read-only
    refs/<namespace>.<name>/<revision>.json   pin
    progress/<namespace>.<name>.<revision>.json   how far a fetch is
    refs/_adapters.<namespace>.<name>/adapter-<hex>.json   pin of an adapter that was trained here
    examples/<namespace>/<name>/  what a server keeps from feedback, and nobody else reads; mode 0770
    quarantine/<hex>.json         what failed verification, and when it may be tried again

A server may hold a shared flock on its tree's directory; what is locked is never collected.
"""
