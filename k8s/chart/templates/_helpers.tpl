{{- define "dray.blocks" -}}
[{{- range $index, $cidr := . }}{{ if $index }}, {{ end }}{"ipBlock": {"cidr": {{ $cidr | quote }}}}{{- end }}]
{{- end }}
{{- define "dray.ports" -}}
[{{- range $index, $port := . }}{{ if $index }}, {{ end }}{"protocol": "TCP", "port": {{ $port }}}{{- end }}]
{{- end }}
{{- define "dray.redisMemory" -}}
{{ max 512 (mul 256 (div (add (mul 3 (int .)) 511) 512)) }}
{{- end }}
