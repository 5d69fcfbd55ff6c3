#!/bin/sh
# Installs Magrathea's agent in a guest: one folder for the guest's own Python (3.6 or later), its configuration, and a
# systemd unit or, without systemd, an init script. Nothing else is needed; PBS distributes the hook by itself.
#
#   sh install.sh [--channel port:PATH|unix:PATH] [--python PATH] [--root DIRECTORY] [--no-start]
#   sh install.sh --uninstall [--root DIRECTORY]
#
# Beside it lie agent/, magrathea-agent.service and magrathea-agent.init (`magrathea guest script` packs all in one).
# It may be run again: an existing /etc/magrathea/agent.json stays, the rest is replaced, and the agent is restarted.
# Stopped jobs stay stopped meanwhile. Exit codes: 0 done, 1 something is missing (named), 2 wrong usage.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
channel=port:/dev/virtio-ports/org.magrathea.0
root='' python='' start=yes action=install

fail() {
    echo "install.sh: $1" >&2
    exit "${2:-1}"
}

while [ $# -gt 0 ]; do
    case $1 in
    --channel | --python | --root)
        [ $# -ge 2 ] || fail "$1 needs a value" 2
        case $1 in
        --channel) channel=$2 ;;
        --python) python=$2 ;;
        --root) root=${2%/} ;;
        esac
        shift
        ;;
    --no-start) start=no ;;
    --uninstall) action=uninstall ;;
    -h | --help)
        sed -n '2,10s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *) fail "$1 is not known; see --help" 2 ;;
    esac
    shift
done
case $channel in
port:/* | unix:/*) ;;
*) fail "--channel $channel: port:PATH for a virtio-serial port, unix:PATH for a socket" 2 ;;
esac
case $channel in
*[!A-Za-z0-9/._:@-]*) fail "--channel $channel: only letters, digits and / . _ : @ -" 2 ;;
esac
case $python in
'' | /*) ;;
*) fail "--python $python: give a path like /usr/bin/python3" 2 ;;
esac
case $python in
*[!A-Za-z0-9/._+-]*) fail "--python $python: only letters, digits and / . _ + -" 2 ;;
esac
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail "must be root: the agent stops other users' processes"
[ -z "$root" ] || start=no

systemd=no
[ -z "$root" ] && [ -d /run/systemd/system ] && systemd=yes
unit=$root/etc/systemd/system/magrathea-agent.service
init=$root/etc/init.d/magrathea-agent

if [ "$action" = uninstall ]; then
    if [ $systemd = yes ] && [ -e "$unit" ]; then
        systemctl disable --now magrathea-agent
    elif [ -z "$root" ] && [ -x "$init" ]; then
        "$init" stop
        for tool in "update-rc.d -f magrathea-agent remove" "chkconfig --del magrathea-agent" "rc-update del magrathea-agent"; do
            if command -v "${tool%% *}" >/dev/null; then $tool; fi
        done
    fi
    rm -rf "$unit" "$init" "$root/usr/lib/magrathea"
    [ $systemd = no ] || systemctl daemon-reload
    echo "the agent is removed; these stay: $root/etc/magrathea, $root/var/lib/magrathea"
    echo "remove /etc/magrathea/agent.json last: without it MoM's hook lets every job start"
    exit 0
fi

for file in agent/__main__.py magrathea-agent.service magrathea-agent.init; do
    [ -r "$here/$file" ] || fail "$here/$file is missing; it belongs beside this script"
done
if [ -z "$python" ]; then
    for candidate in /usr/bin/python3 /usr/local/bin/python3 /usr/libexec/platform-python; do
        if [ -x "$candidate" ]; then
            python=$candidate
            break
        fi
    done
fi
[ -n "$python" ] || fail "no Python found; install python3 (3.6 or later), or name it: --python PATH"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 6))' || fail "$python is older than 3.6; name another: --python PATH"
"$python" -c 'import json, selectors, socket' || fail "$python lacks its standard library (Debian: libpython3-stdlib)"

# The new file replaces the old one in one step, so a reader finds one of them. Nothing is written beside this script:
# its folder may be open to others, who would lay a link there under the name of a new file.
put() { # destination mode, content on standard input
    mkdir -p "$(dirname "$1")"
    rm -f "$1.new"
    (set -C && umask 077 && cat >"$1.new") # -C: refuses what is there, a link, too
    chmod "$2" "$1.new"
    mv -f "$1.new" "$1"
}

lib=$root/usr/lib/magrathea
rm -rf "$lib/agent.new" "$lib/agent.old"
mkdir -p "$lib/agent.new"
cp "$here"/agent/*.py "$lib/agent.new"
chmod 0755 "$lib" "$lib/agent.new"
chmod 0644 "$lib"/agent.new/*.py
# Compiled once: an agent that compiles at its start keeps 10 MB more. A guest without the compiler works, too.
"$python" -m compileall -q -d /usr/lib/magrathea/agent "$lib/agent.new" || echo "install.sh: not compiled; the agent takes 10 MB more" >&2
[ ! -e "$lib/agent" ] || mv "$lib/agent" "$lib/agent.old"
mv "$lib/agent.new" "$lib/agent"
rm -rf "$lib/agent.old" "$lib/agent.py" "$lib/__pycache__" # agent.py: older versions were one file
mkdir -p "$root/etc/magrathea/hooks.d/guest" "$root/var/lib/magrathea"
chmod 0700 "$root/var/lib/magrathea"
if [ -e "$root/etc/magrathea/agent.json" ]; then
    echo "$root/etc/magrathea/agent.json stays as it is"
else
    printf '{\n  "channel": "%s"\n}\n' "$channel" | put "$root/etc/magrathea/agent.json" 0644
fi
said=$("$python" -I -S "$lib/agent" --check --config "$root/etc/magrathea/agent.json" 2>&1) || {
    [ $? = 3 ] || fail "$said"
    [ -n "$root" ] || echo "$said" >&2 # what the guest still lacks, for example a channel; the agent waits for it
}

if [ -n "$root" ] && { [ -d "$root/lib/systemd/system" ] || [ -d "$root/usr/lib/systemd/system" ]; }; then
    systemd=image
fi
if [ $systemd != no ]; then
    sed "s|/usr/bin/python3|$python|" "$here/magrathea-agent.service" | put "$unit" 0644
    if [ $systemd = yes ]; then
        systemctl daemon-reload
        systemctl enable magrathea-agent
        [ $start = no ] || systemctl restart magrathea-agent
    else # an image: enabled as `systemctl enable` does it
        mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
        ln -sf ../magrathea-agent.service "$root/etc/systemd/system/multi-user.target.wants/magrathea-agent.service"
    fi
else
    sed "s|^PYTHON=.*|PYTHON=$python|" "$here/magrathea-agent.init" | put "$init" 0755
    if [ -z "$root" ]; then
        if command -v update-rc.d >/dev/null; then
            update-rc.d magrathea-agent defaults
        elif command -v chkconfig >/dev/null; then
            chkconfig --add magrathea-agent
        elif command -v rc-update >/dev/null; then
            rc-update add magrathea-agent default
        else
            echo "start it at boot, before pbs_mom: /etc/init.d/magrathea-agent start" >&2
        fi
        [ $start = no ] || "$init" restart
    fi
fi
echo "the agent is installed${root:+ in $root}"
