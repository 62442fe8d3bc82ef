{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{/*
`helm upgrade --reuse-values` takes the values of the release that was installed for those of the chart, so what came
later is missing then. Every template begins with this, which takes it from files/defaults.yaml. What was there from the
first is left alone: a null takes a part of it out.
*/}}
{{- define "slmops.complete" -}}
{{- $later := list "commonLabels" "optimizerImage" "runtime" "allowedSourceHosts" "privacy" "serviceMonitor" "fleetPage" "monitoring" "networkPolicy" -}}
{{- range $name, $defaults := .Files.Get "files/defaults.yaml" | fromYaml -}}
{{- if has $name $later -}}
{{- include "slmops.fill" (dict "values" $.Values "defaults" (dict $name $defaults)) -}}
{{- else if eq $name "prometheus" -}}
{{- include "slmops.fill" (dict "values" $.Values.prometheus "defaults" (pick $defaults "install")) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "slmops.fill" -}}
{{- range $name, $default := .defaults -}}
{{- $value := get $.values $name -}}
{{- if or (not (hasKey $.values $name)) (kindIs "invalid" $value) -}}
{{- $_ := set $.values $name $default -}}
{{- else if and (kindIs "map" $value) (kindIs "map" $default) -}}
{{- include "slmops.fill" (dict "values" $value "defaults" $default) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "slmops.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "slmops.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "slmops.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "slmops.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "slmops.selectorLabels" -}}
app.kubernetes.io/name: {{ include "slmops.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "slmops.labels" -}}
{{ include "slmops.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- include "slmops.commonLabels" . }}
{{- end -}}

{{/* Labels of the user's for every object and pod, each on a line of its own; ours win. */}}
{{- define "slmops.commonLabels" -}}
{{- range $key, $value := omit .Values.commonLabels "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "app.kubernetes.io/component" "helm.sh/chart" }}
{{ $key }}: {{ $value | quote }}
{{- end -}}
{{- end -}}

{{- define "slmops.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "slmops.fullname" .) -}}
{{- else -}}
{{- required "serviceAccount.name must be set when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Reference of an image: a dict with `image` (the values) and `tag` (used when the values give none). */}}
{{- define "slmops.image" -}}
{{- $path := .image.repository -}}
{{- if .image.registry -}}{{- $path = printf "%s/%s" .image.registry .image.repository -}}{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $path .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $path (.image.tag | default .tag) -}}
{{- end -}}
{{- end -}}

{{/* URL that the anchors of the alerts' chapters are appended to. */}}
{{- define "slmops.runbookBase" -}}
{{- .Values.monitoring.runbookBase | default "docs/runbooks.md" | trimSuffix "#" -}}
{{- end -}}

{{/* URL of the Prometheus that judges; empty where there is none. One that is named wins over that of the chart. */}}
{{- define "slmops.prometheusURL" -}}
{{- if .Values.prometheus.url -}}
{{- .Values.prometheus.url -}}
{{- else if .Values.prometheus.install.enabled -}}
{{- printf "http://%s-prometheus.%s.svc:9090" (include "slmops.fullname" .) .Release.Namespace -}}
{{- end -}}
{{- end -}}

{{/*
The groups of files/rules.yaml as monitoring.prometheusRule makes them: overrides, labels of the user's, runbooks
elsewhere, and no alert on what is not installed.
*/}}
{{- define "slmops.ruleGroups" -}}
{{- $rule := .Values.monitoring.prometheusRule -}}
{{- $base := include "slmops.runbookBase" . -}}
{{- $known := list -}}
{{- $groups := list -}}
{{- range $group := (.Files.Get "files/rules.yaml" | fromYaml).groups -}}
{{- $rules := list -}}
{{- range $entry := $group.rules -}}
{{- if $entry.record -}}
{{- $rules = append $rules $entry -}}
{{- else -}}
{{- $known = append $known $entry.alert -}}
{{- $override := dig $entry.alert dict $rule.overrides -}}
{{- $wanted := dig "enabled" true $override -}}
{{- if and (eq $entry.alert "SLMOpsStoreAgentMissing") (not $.Values.storeAgent.enabled) -}}
{{- $wanted = false -}}
{{- end -}}
{{- if $wanted -}}
{{- $severity := dig "severity" $entry.labels.severity $override -}}
{{- $labels := mergeOverwrite (deepCopy $rule.alertLabels) (dict "severity" $severity) -}}
{{- $anchor := last (splitList "#" $entry.annotations.runbook_url) -}}
{{- $annotations := mergeOverwrite (deepCopy $entry.annotations) (dict "runbook_url" (printf "%s#%s" $base $anchor)) -}}
{{- $alert := dict "alert" $entry.alert "expr" (dig "expr" $entry.expr $override) "labels" $labels "annotations" $annotations -}}
{{- with dig "for" (dig "for" "" $entry) $override -}}
{{- $_ := set $alert "for" . -}}
{{- end -}}
{{- $rules = append $rules $alert -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $groups = append $groups (dict "name" $group.name "rules" $rules) -}}
{{- end -}}
{{- range $name, $_ := $rule.overrides -}}
{{- if not (has $name $known) -}}
{{- fail (printf "monitoring.prometheusRule.overrides: there is no alert %s; there are: %s" $name (join ", " $known)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $groups -}}
{{- end -}}
