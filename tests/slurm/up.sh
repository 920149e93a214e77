#!/usr/bin/env bash
# A SLURM of one node for tests: real slurmctld, slurmd and munge, without systemd, cgroups or accounting. Needs root and
#   apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
# up.sh DIR starts it; then export SLURM_CONF=DIR/slurm.conf. down.sh DIR ends it.
set -euo pipefail
dir=$(realpath -m "$1")
mkdir -p "$dir/ctld" "$dir/slurmd"
chmod 755 "$dir"

# SLURM's clients look for munge at its default socket. Only a munged that we start is ours to stop.
if ! munge -n > /dev/null 2>&1; then
  install -d -o munge -g munge -m 0755 /run/munge
  runuser -u munge -- /usr/sbin/munged
  cp /run/munge/munged.pid "$dir/munged.pid"
fi

# cred_expire is also how long a requeued job waits before it starts again; the scheduler looks every second.
cat > "$dir/slurm.conf" << EOF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0
ReturnToService=2
KillWait=5
MinJobAge=3600
JobRequeue=1
StateSaveLocation=$dir/ctld
SlurmdSpoolDir=$dir/slurmd
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$(awk '/MemTotal/ {print int($2 / 1200)}' /proc/meminfo)
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
echo 'CgroupPlugin=disabled' > "$dir/cgroup.conf"

export SLURM_CONF=$dir/slurm.conf
slurmctld
slurmd
for _ in $(seq 60); do
  if sinfo -h -o %T 2> /dev/null | grep -q idle; then exit 0; fi
  sleep 0.5
done
echo "SLURM did not come up; see $dir/slurmctld.log and $dir/slurmd.log" >&2
exit 1
