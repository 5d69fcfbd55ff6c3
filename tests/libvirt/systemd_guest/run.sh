# Runs in the guest (tests/libvirt/test_systemd.py), as an admin and as MoM. What it prints is a section per check.
cd /mnt || exit 1
section() { printf '\n== %s\n' "$1"; } # the console may be in the midst of a line

section install
sh install-agent.sh 2>&1
dd if=/dev/zero of=/swap bs=1M count=64 2>/dev/null && chmod 0600 /swap && mkswap -q /swap && swapon /swap
useradd --system magrathea
useradd --create-home alice

section mom
python3 mom.py 2>&1

section agent
systemctl show -p ActiveState -p NRestarts magrathea-agent
pid=$(systemctl show --value -p MainPID magrathea-agent)
echo "policy $(cut -d' ' -f41 "/proc/$pid/stat")"
echo "oom_score_adj $(cat "/proc/$pid/oom_score_adj")"
journalctl -b -o cat -u magrathea-agent
if [ -d opt ]; then
    mkdir -p /opt/magrathea /etc/magrathea
    mount --bind /mnt/opt /opt/magrathea
    cp magrathea-noded.service magrathea-hub.service /etc/systemd/system/
    cp noded.toml hub.toml /etc/magrathea/
    systemctl daemon-reload
    for part in noded hub; do
        section "$part"
        timeout 120 systemctl start "magrathea-$part"
        systemctl show -p ActiveState -p NRestarts "magrathea-$part"
        journalctl -b -o cat -u "magrathea-$part"
        if [ $part = noded ]; then
            section reload
            systemctl reload magrathea-noded
            echo "reload $?"
            systemctl show -p ActiveState magrathea-noded
        fi
        systemctl stop "magrathea-$part"
    done
fi

section verify
systemd-analyze verify /etc/systemd/system/magrathea-*.service 2>&1
for unit in /etc/systemd/system/magrathea-*.service; do
    section "security $(basename "$unit" .service)"
    systemd-analyze security --no-pager --offline=yes "$unit" 2>&1
done

section end
