#!/usr/bin/env bash
# Prints the Secrets that the manifests use as YAML, with new passwords and certificates:
#   k8s/secrets.sh | kubectl apply -f -
# Run it once: each run creates other passwords. Use cert-manager or a secret store instead if you have one.
set -euo pipefail
namespace=${1:-dray}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

secret() {
  kubectl create secret generic "$@" --namespace "$namespace" --dry-run=client --output yaml
  echo "---"
}

names=""
for server in answers teams gcs; do
  # Letters and digits only, because it becomes part of a URL.
  openssl rand -hex 32 | tr -d '\n' > "$folder/password"
  secret "dray-$server" --from-file=password="$folder/password"
  names+="DNS:dray-$server,DNS:dray-$server.$namespace,DNS:dray-$server.$namespace.svc,"
  names+="DNS:dray-$server.$namespace.svc.cluster.local,"
done

# The servers' own probes connect to localhost.
names+="DNS:localhost,IP:127.0.0.1"
openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -subj "/CN=dray-redis-ca" \
  -keyout "$folder/ca.key" -out "$folder/ca.crt" 2> "$folder/log"
openssl req -newkey rsa:3072 -nodes -subj "/CN=dray-redis" \
  -keyout "$folder/tls.key" -out "$folder/tls.csr" 2>> "$folder/log"
openssl x509 -req -in "$folder/tls.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial -days 825 \
  -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names") -out "$folder/tls.crt" 2>> "$folder/log"
secret dray-redis-tls --from-file=ca.crt="$folder/ca.crt" --from-file=tls.crt="$folder/tls.crt" \
  --from-file=tls.key="$folder/tls.key"
