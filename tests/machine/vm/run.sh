#!/bin/sh
# Runs tests/machine in a Debian kernel with the unified cgroup hierarchy, under qemu's software emulation.
#
#   tests/machine/vm/run.sh WORKDIR [pytest arguments]
#
# Needs root, mmdebstrap, qemu-system-x86, cpio, and a Python 3.11 environment that can import the project (the one
# that `python3` is). The guest's root file system is its initramfs: nothing is shared with the host but the console.
# docs/cgroups.md says what this shows and what it does not.
set -eu
here=$(cd "$(dirname "$0")/../../.." && pwd)
work=$1
shift
suite=bookworm
mkdir -p "$work"

if [ ! -e "$work/root.cpio" ]; then
    rm -rf "$work/root"
    mmdebstrap --quiet --variant=essential \
        --include=python3,kmod,e2fsprogs,iproute2,util-linux,mount,crun,docker-registry,linux-image-cloud-amd64 \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$suite" "$work/root"
    cp "$work"/root/boot/vmlinuz-* "$work/vmlinuz"
    rm -rf "$work"/root/boot "$work"/root/var/lib/apt "$work"/root/var/cache "$work"/root/usr/lib/modules/*/kernel/drivers/gpu
    # What the tests import, out of this environment; its C extensions fit the suite's Python 3.11.
    python3 - "$work/root/usr/lib/python3/dist-packages" <<'PYTHON'
import importlib.metadata
import pathlib
import re
import shutil
import sys

target = pathlib.Path(sys.argv[1])
pending = ["pydantic", "pyroute2", "psutil", "pytest", "typer", "rich", "isal", "zstandard", "numpy", "msgspec", "docker"]
seen = set()
while pending:
    name = re.split(r"[^A-Za-z0-9._-]", pending.pop())[0].lower()
    if name in seen:
        continue
    seen.add(name)
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        continue
    pending += [r for r in found.requires or () if "extra ==" not in r]
    for file in found.files or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            place = target / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), place)
PYTHON
    cat > "$work/root/init" <<'INIT'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /run /tmp /var/tmp
mount -t tmpfs run /run
mount -t tmpfs tmp /var/tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
for module in loop ext4 veth sch_tbf sch_netem sch_ingress cls_bpf overlay fuse; do modprobe "$module"; done
cd /project
read -r arguments < /arguments
uname -r
# shellcheck disable=SC2086
python3 -m pytest -p no:cacheprovider -o addopts="-ra --strict-markers" $arguments
echo "guest: pytest ended with $?"
echo o > /proc/sysrq-trigger
sleep 60
INIT
    chmod 755 "$work/root/init"
    (cd "$work/root" && find . | cpio --quiet -o -H newc) > "$work/root.cpio"
fi

# The project and the arguments come on top, in an archive of their own.
rm -rf "$work/top"
mkdir -p "$work/top/project"
(cd "$here" && git ls-files -z harness tests pyproject.toml | xargs -0 cp --parents -t "$work/top/project")
echo "${*:-tests/machine}" > "$work/top/arguments"
(cd "$work/top" && find . | cpio --quiet -o -H newc) > "$work/top.cpio"
cat "$work/root.cpio" "$work/top.cpio" > "$work/initramfs"

qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 2048 -display none -no-reboot -serial stdio -monitor none \
    -kernel "$work/vmlinuz" -initrd "$work/initramfs" \
    -append "console=ttyS0 quiet panic=-1" | tee "$work/console.log"
grep -q 'guest: pytest ended with 0' "$work/console.log"
