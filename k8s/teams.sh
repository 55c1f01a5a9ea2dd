#!/usr/bin/env bash
# Backs up the Redis of teams, keys, quotas and usage, or replaces all that it holds by a backup:
#   k8s/teams.sh backup teams.rdb [NAMESPACE]
#   k8s/teams.sh restore teams.rdb [NAMESPACE]
set -euo pipefail
usage() { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
[[ $# -ge 2 ]] || usage
action=$1 file=$2 namespace=${3:-dray}

in_pod() { kubectl --namespace "$namespace" exec --stdin dray-teams-0 --container redis -- sh -c "$1"; }

# In the pod, where the password is.
teams='REDISCLI_AUTH="$PASSWORD" valkey-cli --tls --cacert /etc/redis-tls/ca.crt'

case $action in
backup)
  in_pod "$teams SAVE" < /dev/null >&2
  in_pod 'cat /data/dump.rdb && rm /data/dump.rdb' < /dev/null > "$file"
  [[ -s $file ]] || { echo "the backup is empty" >&2; exit 1; }
  ;;
restore)
  [[ -s $file ]] || { echo "$file is no backup: it is empty or does not exist" >&2; exit 1; }
  in_pod 'mkdir -p /data/restore && cat > /data/restore/dump.rdb' < "$file"
  # A second server reads the backup, and the running one becomes its replica for a moment: it takes over all data, and
  # writes it into its append-only file. Meanwhile routers go on with the teams that they know.
  in_pod "
    set -e
    valkey-server --port 6380 --bind 127.0.0.1 --dir /data/restore --save '' --appendonly no >&2 &
    server=\$!
    trap 'kill \$server 2> /dev/null || true; wait; rm -r /data/restore' EXIT
    until valkey-cli -p 6380 PING 2>&1 | grep -q PONG; do
      sleep 0.5
      kill -0 \$server 2> /dev/null || { echo 'this is no backup: the server does not read it' >&2; exit 1; }
    done
    $teams REPLICAOF 127.0.0.1 6380 >&2
    for _ in \$(seq 120); do
      $teams INFO replication | grep -q 'master_link_status:up' && break
      sleep 0.5
    done
    $teams INFO replication | grep -q 'master_link_status:up' || {
      $teams REPLICAOF NO ONE >&2
      echo 'the running server could not take over the backup' >&2
      exit 1
    }
    $teams REPLICAOF NO ONE >&2
    # Routers load teams and keys when this number changes, to whatever.
    $teams INCRBY 'dray:{teams}:version' 1000000 >&2
  " < /dev/null
  ;;
*) usage ;;
esac
