#!/bin/sh
# The real servers that the tests talk to, from Debian's packages. As root they are installed, and
# kept from being started by the system; otherwise it is said what is missing, and those tests skip.
set -eu
packages="redis-server postgresql dcmtk orthanc orthanc-dicomweb chromium strace procps"
# Debian's npm brings a node of its own, which would stand in the way of another one.
command -v npm >/dev/null || packages="$packages npm"
missing=""
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests that need these Debian packages will skip:$missing"
    exit 0
fi
echo "installing$missing"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
