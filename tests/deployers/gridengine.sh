#!/bin/sh
# Run a command beside an SGE of its own: gridengine.sh FOLDER COMMAND...
# Started by unshare with all namespaces of its own. So its files lie in FOLDER, and all its processes
# end with it. The host's name must be that of its address, or SGE refuses to talk to itself. Jobs
# run as root, and find in /etc/passwd that its home is $HOME.
set -e
folder=$1
shift
mkdir "$folder/lib" "$folder/spool"
cp -a /var/lib/gridengine/. "$folder/lib"
cp -a /var/spool/gridengine/. "$folder/spool"
echo "127.0.0.1 grid localhost" > "$folder/hosts"
echo grid > "$folder/lib/default/common/act_qmaster"
sed "s|^\(root:.*\):[^:]*:\([^:]*\)$|\1:$HOME:\2|" /etc/passwd > "$folder/passwd"
mount --bind "$folder/hosts" /etc/hosts
mount --bind "$folder/passwd" /etc/passwd
mount --bind "$folder/lib" /var/lib/gridengine
mount --bind "$folder/spool" /var/spool/gridengine
hostname grid
ip link set lo up

sge_qmaster
for _ in $(seq 300); do
    qconf -sh > "$folder/ready" 2>&1 && break
    sleep 0.1
done
grep -q grid "$folder/ready" || qconf -ah grid
qconf -as grid
printf 'group_name @allhosts\nhostlist grid\n' > "$folder/group"
qconf -Ahgrp "$folder/group"
qconf -sq | sed -e 's/^qname .*/qname all.q/' -e 's/^hostlist .*/hostlist @allhosts/' \
    -e 's/^slots .*/slots 64/' -e 's/^shell .*/shell \/bin\/sh/' -e 's/^pe_list .*/pe_list NONE/' \
    -e 's/^load_thresholds .*/load_thresholds NONE/' > "$folder/queue"
qconf -Aq "$folder/queue"
qconf -sconf | sed -e "s/^min_uid .*/min_uid 0/" -e "s/^min_gid .*/min_gid 0/" > "$folder/global"
qconf -Mconf "$folder/global"
sge_execd
exec "$@"
