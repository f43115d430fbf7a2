#!/usr/bin/env bash
# grid_engine.sh CMD...   (root): run CMD with a fresh real Grid Engine (Debian's gridengine-master, -exec and -client)
# around it, in network, pid, uts and mount namespaces of its own: loopback only, hostname "sge1", nothing left behind.
set -u
if [ -z "${GRID_ENGINE_INNER:-}" ]; then
  export GRID_ENGINE_INNER=$(mktemp -d /tmp/grid_engine.XXXXXX)
  unshare --net --uts --mount --pid --fork --kill-child --mount-proc --propagation private "$0" "$@"
  status=$?
  rmdir "$GRID_ENGINE_INNER"
  exit $status
fi
hostname sge1
ip link set lo up 2>/dev/null || { echo "need iproute2" >&2; exit 3; }
T=$GRID_ENGINE_INNER; mount -t tmpfs tmpfs "$T"
printf '127.0.0.1 sge1 localhost\n' >"$T/hosts"; mount --bind "$T/hosts" /etc/hosts
# work on copies of the pristine cell and spool that Debian's postinst made
for d in /var/spool/gridengine /var/lib/gridengine/default; do
  cp -a "$d" "$T/$(basename "$d")-copy"; mount --bind "$T/$(basename "$d")-copy" "$d"
done
mkdir -p /run/gridengine && chown sgeadmin: /run/gridengine
export SGE_ROOT=/var/lib/gridengine SGE_CELL=default
echo sge1 >$SGE_ROOT/$SGE_CELL/common/act_qmaster
fail() { echo "SGE did not start: $1" >&2; tail -n 20 /var/spool/gridengine/qmaster/messages /tmp/*_messages.* 2>/dev/null >&2; exit 1; }
# root must be a manager, admin and submit host before qconf works: qmaster does that for the local host
sge_qmaster || fail qmaster
for i in $(seq 50); do qconf -sh >/dev/null 2>&1 && break; sleep 0.2; done
qconf -sh >/dev/null 2>&1 || fail "qconf -sh"
{
qconf -as sge1; qconf -ah sge1
printf 'hostname sge1\nload_scaling NONE\ncomplex_values NONE\nuser_lists NONE\nxuser_lists NONE\nprojects NONE\nxprojects NONE\nusage_scaling NONE\nreport_variables NONE\n' >"$T/eh"; qconf -Ae "$T/eh"
printf 'group_name @allhosts\nhostlist sge1\n' >"$T/hg"; qconf -Ahgrp "$T/hg"
# min_uid/min_gid 0, or jobs of root are refused; fast reschedule
qconf -sconf | sed -e 's/^min_uid.*/min_uid 0/;s/^min_gid.*/min_gid 0/' -e 's/^load_report_time.*/load_report_time 00:00:05/' >"$T/global"; qconf -Mconf "$T/global"
qconf -ssconf | sed -e 's/^schedule_interval.*/schedule_interval 0:0:1/;s/^flush_submit_sec.*/flush_submit_sec 1/;s/^flush_finish_sec.*/flush_finish_sec 1/;s/^load_formula.*/load_formula slots/' >"$T/sched"; qconf -Msconf "$T/sched"
sge_execd || fail execd
EDITOR=true qconf -sq >/dev/null 2>&1
cat >"$T/q" <<Q
qname all.q
hostlist @allhosts
seq_no 0
load_thresholds NONE
suspend_thresholds NONE
nsuspend 1
suspend_interval 00:05:00
priority 0
min_cpu_interval 00:05:00
processors UNDEFINED
qtype BATCH INTERACTIVE
ckpt_list NONE
pe_list smp
rerun FALSE
slots 4
tmpdir /tmp
shell /bin/bash
prolog NONE
epilog NONE
shell_start_mode unix_behavior
starter_method NONE
suspend_method NONE
resume_method NONE
terminate_method NONE
notify 00:00:60
owner_list NONE
user_lists NONE
xuser_lists NONE
subordinate_list NONE
complex_values NONE
projects NONE
xprojects NONE
calendar NONE
initial_state default
s_rt INFINITY
h_rt INFINITY
s_cpu INFINITY
h_cpu INFINITY
s_fsize INFINITY
h_fsize INFINITY
s_data INFINITY
h_data INFINITY
s_stack INFINITY
h_stack INFINITY
s_core INFINITY
h_core INFINITY
s_rss INFINITY
h_rss INFINITY
s_vmem INFINITY
h_vmem INFINITY
Q
printf 'pe_name smp\nslots 999\nuser_lists NONE\nxuser_lists NONE\nstart_proc_args NONE\nstop_proc_args NONE\nallocation_rule $pe_slots\ncontrol_slaves FALSE\njob_is_first_task TRUE\nurgency_slots min\naccounting_summary FALSE\nqsort_args NONE\n' >"$T/pe"; qconf -Ap "$T/pe"
qconf -Aq "$T/q"
} >"$T/log" 2>&1
for i in $(seq 100); do
  qstat -f 2>/dev/null | grep -q -E '^all.q@sge1.*lx-amd64[[:space:]]*$' && break; sleep 0.2
done
"$@"; rc=$?
qconf -ke all >/dev/null 2>&1; qconf -km >/dev/null 2>&1
exit $rc
