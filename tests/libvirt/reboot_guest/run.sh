# Runs in the guest (tests/libvirt/test_systemd_reboot.py) after each of its two boots. It prints a section per check.
cd /mnt || exit 1
section() { printf '\n== %s\n' "$1"; } # the console may be in the midst of a line

if [ ! -e /opt/magrathea ]; then
    section install
    mkdir -p /etc/magrathea /run/magrathea
    cp -a opt /opt/magrathea
    cp -r units/. /etc/systemd/system/
    cp noded.toml /etc/magrathea/
    touch /run/magrathea/n1.up /run/magrathea/n2.up
    systemctl daemon-reload
    systemctl enable --now libvirtd libvirt-guests magrathea-noded magrathea-sleep 2>&1

    section restart
    systemctl restart magrathea-sleep
    journalctl -b -o cat -u magrathea-sleep

    section plan
    /opt/magrathea/bin/magrathea host sleep --dry-run 2>&1

    section shutdown
    systemctl reboot
    exit
fi

section woken
tries=600
while [ ! -e /run/magrathea/n1.up ] && [ $((tries -= 1)) -gt 0 ]; do sleep 0.2; done
echo "up: $(cd /run/magrathea && echo *.up)"
journalctl -b -o cat -u magrathea-noded

section end
systemctl stop magrathea-sleep # they need not sleep again
systemctl poweroff
