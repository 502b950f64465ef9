"""A SLURM of one node in a folder of its own, with the machine's real programs; nothing else is touched."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers_ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
CONFIGURATION = """
ClusterName=tiny
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2,requeue_delay=1
MinJobAge=600
KillWait=15
OverTimeLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=short Nodes=ALL Default=YES MaxTime=60 State=UP
"""


def configure(folder: Path) -> dict[str, str]:
    "Write the configuration and the key; gives the environment in which SLURM's commands find it."
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host, cpus = socket.gethostname().split(".")[0], os.cpu_count() or 1
    (folder / "slurm.conf").write_text(CONFIGURATION.format(
        host=host, folder=folder, user=getpass.getuser(), ports=free_ports(2), cpus=min(2, cpus)))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    return {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}


def wait_for(what: str, ready, seconds: float = 60) -> None:
    "Ask until the answer is yes."
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"{what} took more than {seconds:.0f} seconds"
        time.sleep(0.2)


def idle(environment: dict[str, str]) -> bool:
    "Whether the node takes jobs."
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() in ("idle", "mixed", "allocated")


@contextmanager
def tiny_slurm(folder: Path) -> Iterator[dict[str, str]]:
    "A running SLURM; gives the environment that its commands need."
    folder.mkdir(parents=True, exist_ok=True)
    environment = configure(folder)
    munge = ["munged", "-F", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
             f"--log-file={folder}/munge.log", f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed"]
    processes = []
    with (folder / "daemons.log").open("wb") as log:
        def start(*words: str) -> None:
            processes.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=folder))
        try:
            start(*munge)
            wait_for("munge", lambda: (folder / "munge.socket").exists())
            start("slurmctld", "-D")
            start("slurmd", "-D")
            wait_for("the node", lambda: idle(environment))
            yield environment
            subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, capture_output=True)
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait(30)
