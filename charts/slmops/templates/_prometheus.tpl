{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{/* Its name is not ours: privacy.metricsFrom lets in by that label, and Services of ours do not select it. */}}
{{- define "slmops.prometheusSelectorLabels" -}}
app.kubernetes.io/name: prometheus
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: prometheus
{{- end -}}

{{- define "slmops.prometheusLabels" -}}
{{ include "slmops.prometheusSelectorLabels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- include "slmops.commonLabels" . }}
{{- end -}}

{{/* Its configuration: the jobs of files/scrapes.yaml, as the values say. */}}
{{- define "slmops.prometheusConfig" -}}
{{- $install := .Values.prometheus.install -}}
{{- $site := "__meta_kubernetes_node_label_topology_kubernetes_io_zone" -}}
{{- $jobs := list -}}
{{- range $job := (.Files.Get "files/scrapes.yaml" | fromYaml).scrape_configs -}}
{{- $discovery := dict "role" "pod" -}}
{{- if ne $job.job_name "slmops-models" -}}
{{- $_ := set $discovery "namespaces" (dict "own_namespace" true) -}}
{{- else if $.Values.watchNamespaces -}}
{{- $_ := set $discovery "namespaces" (dict "names" $.Values.watchNamespaces) -}}
{{- end -}}
{{- $rules := list -}}
{{- range $rule := $job.relabel_configs -}}
{{- $source := first ($rule.source_labels | default (list "")) -}}
{{- if ne $source $site -}}
{{- if eq $source "__meta_kubernetes_pod_label_app_kubernetes_io_name" -}}
{{- $rule = set $rule "regex" (include "slmops.name" $) -}}
{{- end -}}
{{- $rules = append $rules $rule -}}
{{- else if $install.siteLabel -}}
{{- $_ := set $discovery "attach_metadata" (dict "node" true) -}}
{{- $label := printf "__meta_kubernetes_node_label_%s" (regexReplaceAll "[^A-Za-z0-9_]" $install.siteLabel "_") -}}
{{- $rules = append $rules (set $rule "source_labels" (list $label)) -}}
{{- end -}}
{{- end -}}
{{- $changes := dict "kubernetes_sd_configs" (list $discovery) "relabel_configs" $rules -}}
{{- if or (ne $job.job_name "slmops-store-agents") $.Values.storeAgent.enabled -}}
{{- $jobs = append $jobs (merge $changes (omit $job "scrape_interval")) -}}
{{- end -}}
{{- end -}}
global:
  scrape_interval: {{ $install.scrapeInterval }}
  evaluation_interval: {{ $install.scrapeInterval }}
storage:
  tsdb:
    retention:
      time: {{ $install.retention }}
      size: {{ $install.retentionSize }}
rule_files: [rules.yaml]
scrape_configs:
  {{- toYaml $jobs | nindent 2 }}
{{- end -}}

{{- define "slmops.prometheusRules" -}}
groups:
  {{- include "slmops.ruleGroups" . | nindent 2 }}
{{- end -}}

{{/* A peer of NetworkPolicies. */}}
{{- define "slmops.prometheusPeer" -}}
- podSelector:
    matchLabels:
      {{- include "slmops.prometheusSelectorLabels" . | nindent 6 }}
{{- end -}}
