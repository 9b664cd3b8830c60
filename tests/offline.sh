#!/usr/bin/env bash
# Run a command where there is no network but loopback, so that what tries to leave fails: tests/offline.sh make test
# The kernel counts the tries, of every process, look-ups of names included: they are told at the end, and more than
# $OFFLINE_TRIES (0) make the status 1 where it would be 0. Without a command the status says whether this works here.
set -euo pipefail

[ "$#" -gt 0 ] || set -- true
alone=(unshare --net --mount)
if ! "${alone[@]}" true 2>/dev/null; then
    alone+=(--map-root-user)
    set -- unshare --map-user="$(id -u)" --map-group="$(id -g)" "$@"  # who is not root is root for the setting up alone
fi
exec "${alone[@]}" bash -c '
    set -e
    left() { awk "/^Ip: [0-9]/ { n += \$13 } /^Ip6OutNoRoutes/ { n += \$2 } END { print n }" /proc/net/snmp /proc/net/snmp6; }
    ip link set lo up
    # a second address: names in /etc/hosts are not found where 127.0.0.1 is the only one (AI_ADDRCONFIG)
    ip address add 127.0.0.2/8 dev lo
    # this machine by its own name and by each of its addresses (torch asks who ::ffff:127.0.0.1 is): to ask a name
    # server for it is no try to leave
    hosts=$(mktemp)
    { cat /etc/hosts; echo "127.0.0.1 $(hostname)"; echo "::1 $(hostname)"; echo "::ffff:127.0.0.1 localhost"; } >"$hosts"
    chmod 644 "$hosts"
    mount --bind "$hosts" /etc/hosts
    rm "$hosts"
    before=$(left)
    status=0
    "$@" || status=$?
    tries=$(($(left) - before))
    if [ "$tries" -gt 0 ]; then
        echo "offline: $tries tries to leave this machine" >&2
        [ "$status" -ne 0 ] || [ "$tries" -le "${OFFLINE_TRIES:-0}" ] || status=1
    fi
    exit "$status"' offline "$@"
