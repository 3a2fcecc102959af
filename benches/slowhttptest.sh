#!/bin/sh
# slowhttptest in its four modes against a running Palisade on loopback: when is the last attacker gone, and is an honest client
# served meanwhile? Figures go to standard output.
#
#   benches/slowhttptest.sh http://127.0.0.1:8080/ [connections] [path of a large answer]
#
# With the defaults the deadlines are: head 10 s; body 10 s grace and then 500 B/s, or 15 s without a byte; reading the same.
# The attackers all come from one address: raise limits.connections_per_ip and the rates for the run (benches/lab.toml.in does).
set -eu
url=${1:?the address of Palisade}
connections=${2:-1000}
large=${3:-}
seconds=${SECONDS_LONG:-40}
case $url in
    http://127.* | http://localhost* | http://\[::1\]*) ;;
    *) echo "loopback only" >&2; exit 64 ;;
esac
ulimit -n "$(ulimit -H -n)"
port=$(echo "$url" | sed -E 's,^[a-z]+://[^/]*:([0-9]+).*,\1,')

run() {
    name=$1
    shift
    log=$(mktemp)
    slowhttptest -c "$connections" -r 1000 -l "$seconds" "$@" >"$log" 2>&1 &
    pid=$!
    ok=0
    sent=0
    begun=$(date +%s)
    gone=-
    held=0
    while kill -0 "$pid" 2>/dev/null; do
        now=$(ss -Htan "sport = :$port" | grep -cvE 'TIME-WAIT|LISTEN' || true)
        if [ "$now" -gt "$held" ]; then
            held=$now
            full=$(date +%s)
        elif [ "$now" -le 1 ] && [ "$held" -gt 1 ] && [ "$gone" = - ]; then
            gone=$(($(date +%s) - full))
        fi
        sent=$((sent + 1))
        if curl -s -o /dev/null --max-time 3 -f "$url"; then ok=$((ok + 1)); fi
        sleep 0.5
    done
    wait "$pid" || true
    whole=$(($(date +%s) - begun))
    # What slowhttptest prints last may be seconds old; the kernel knows.
    left=$(ss -Htan "sport = :$port" | grep -cvE 'TIME-WAIT|LISTEN' || true)
    # FIN-WAIT and LAST-ACK belong to the kernel alone; ESTAB and CLOSE-WAIT to Palisade.
    states=$(ss -Htan "sport = :$port" | awk '$1 != "TIME-WAIT" && $1 != "LISTEN" { n[$1]++ } END { for (s in n) printf " %s %d", s, n[s] }')
    echo "$name: most held $held, the last gone $gone s after that, left at the end $left$states, ended after $whole s of $seconds, honest $ok of $sent"
    rm -f "$log"
}

run "slow head (-H)" -H -i 5 -u "$url"
run "slow body (-B)" -B -i 5 -s 8192 -u "$url"
run "range (-R)" -R -u "$url"
run "slow read (-X)" -X -w 512 -y 1024 -n 5 -z 32 -u "${large:-$url}"
