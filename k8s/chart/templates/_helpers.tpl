{{- define "dray.blocks" -}}
[{{- range $index, $cidr := . }}{{ if $index }}, {{ end }}{"ipBlock": {"cidr": {{ $cidr | quote }}}}{{- end }}]
{{- end }}
{{- define "dray.ports" -}}
[{{- range $index, $port := . }}{{ if $index }}, {{ end }}{"protocol": "TCP", "port": {{ $port }}}{{- end }}]
{{- end }}
