"""Several machines, played by this one: two addresses, two network namespaces, and a Slurm node."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt2edu.shards import write_shard

LIMIT_S = 60
# mpiexec calls a program like ssh: HOST COMMAND...; these go to the host without ssh. -x is an option for ssh
ON_THIS_MACHINE = '#!/bin/sh\n[ "$1" = -x ] && shift\nshift\neval "exec $*"\n'
IN_A_NAMESPACE = (
    '#!/bin/sh\n[ "$1" = -x ] && shift\nhost=$1\nshift\n'
    'eval "exec ip netns exec $host unshare --uts sh -c \'hostname $host && exec \\"\\$@\\"\' sh $*"\n'
)
BRIDGE, BRIDGE_ADDRESS = "gpt2edu-bridge", "10.77.0.254"
NODES = {"gpt2edu-a": "10.77.0.1", "gpt2edu-b": "10.77.0.2"}  # names of namespaces, and addresses there
SLURM_CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=pmi2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Return training's flags, up to its output folder."""
    tokens = tmp_path_factory.mktemp("data") / "tokens.bin"
    write_shard(tokens, np.random.default_rng(0).integers(0, 10, 3000) ** 2)
    return (
        f"-i {tokens} -j {tokens} -e d1,h2,c16,t16,v100 -b 2 -t 16 -d 128 -x 5 -n 5 -l 0.01 -v 0 -s 0 -z 1 --device cpu"
    )


def train(command, flags, folder, **variables):
    """Run training with `command` before it; return what it printed and the weights that it left."""
    process = subprocess.run(
        [*command, *shlex.split(f"{flags} -o {folder}")],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout, (folder / "model_00000005.bin").read_bytes()


def launch(hosts, program, folder):
    """Return the command that starts a rank on each of `hosts`, and the variables that make mpiexec use `program`."""
    (folder / "hosts").write_text("\n".join(hosts) + "\n")
    (folder / "launcher").write_text(program)
    (folder / "launcher").chmod(0o755)
    command = f"{sys.executable} -m gpt2edu.launch -n {len(hosts)} --hostfile {folder}/hosts --"
    return command.split(), {"HYDRA_LAUNCHER": "ssh", "HYDRA_LAUNCHER_EXEC": f"{folder}/launcher"}


@pytest.fixture(scope="module")
def one_node(flags, tmp_path_factory):
    """Return the weights that two ranks of one machine leave."""
    command = f"{sys.executable} -m gpt2edu.launch -n 2 --"
    return train(command.split(), flags, tmp_path_factory.mktemp("one"))[1]


def need(*tools):
    """Fail if this test cannot be run here, and say what it needs."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing or os.geteuid():
        pytest.fail(f"needs root and {' '.join(tools)} (Debian: apt-get install iproute2 slurm-wlm munge)")


def test_two_addresses_of_a_hostfile(flags, one_node, tmp_path):
    command, variables = launch(["127.0.0.2", "127.0.0.3"], ON_THIS_MACHINE, tmp_path)
    _, weights = train(command, flags, tmp_path / "run", **variables)
    assert weights == one_node


@pytest.fixture
def namespaces(tmp_path):
    """Two hosts with a name, an address and a network interface of their own, joined by a bridge."""
    need("ip", "unshare")

    def ip(arguments, check=True):
        subprocess.run(["ip", *arguments.split()], check=check, capture_output=True)

    def remove():
        for name in NODES:
            ip(f"netns delete {name}", check=False)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)
        ip(f"link delete {BRIDGE}", check=False)

    remove()
    try:
        ip(f"link add {BRIDGE} type bridge")
        ip(f"address add {BRIDGE_ADDRESS}/24 dev {BRIDGE}")
        ip(f"link set {BRIDGE} up")
        addresses = {"localhost": "127.0.0.1", socket.gethostname(): BRIDGE_ADDRESS, **NODES}
        hosts = "".join(f"{address} {name}\n" for name, address in addresses.items())
        for name, address in NODES.items():
            os.makedirs(f"/etc/netns/{name}")
            with open(f"/etc/netns/{name}/hosts", "w") as file:  # is /etc/hosts in the namespace
                file.write(hosts)
            ip(f"netns add {name}")
            ip(f"link add {name} type veth peer name eth0 netns {name}")
            ip(f"link set {name} master {BRIDGE} up")
            ip(f"-n {name} address add {address}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
            ip(f"-n {name} link set lo up")
        yield list(NODES)
    finally:
        remove()


@pytest.mark.slow
def test_two_network_namespaces(flags, one_node, namespaces, tmp_path):
    command, variables = launch(namespaces, IN_A_NAMESPACE, tmp_path)
    # without the second, MPI finds that both hosts share their memory, and sends nothing through the network
    variables |= {"HYDRA_IFACE": BRIDGE, "UCX_TLS": "tcp,self"}
    printed, weights = train(command, flags, tmp_path / "run", **variables)
    assert re.findall(r"rank (\d) is process \d+ on (\S+)", printed) == [("0", "gpt2edu-a"), ("1", "gpt2edu-b")]
    assert weights == one_node
    counter = "ip netns exec gpt2edu-a cat /sys/class/net/eth0/statistics/tx_bytes"
    n_sent = int(subprocess.run(counter.split(), capture_output=True, text=True, check=True).stdout)
    half_gradients = 4 * 5616 / 2  # bytes
    assert n_sent > 5 * 2 * half_gradients  # in 5 steps, and as many weights


@pytest.fixture
def slurm(tmp_path):
    """A Slurm cluster of this machine alone: yields the variable that names its configuration."""
    need("munged", "slurmctld", "slurmd", "srun")
    for name in ("state", "spool"):
        (tmp_path / name).mkdir()
    configuration = tmp_path / "slurm.conf"
    configuration.write_text(SLURM_CONFIGURATION.format(host=socket.gethostname(), folder=tmp_path))
    key = tmp_path / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    variables = {"SLURM_CONF": str(configuration)}
    names = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = " ".join(f"--{option}={tmp_path}/munge.{name}" for option, name in names.items())
    daemons = []
    try:
        for command in (f"munged --foreground --force {options}", "slurmctld -D", "slurmd -D"):
            daemons.append(subprocess.Popen(command.split(), env=os.environ | variables, stderr=subprocess.DEVNULL))
            time.sleep(1)
        yield variables
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


@pytest.mark.slow
def test_a_slurm_node(flags, one_node, slurm, tmp_path):
    command = ["srun", "-n", "2", sys.executable, "-m", "gpt2edu.train"]
    _, weights = train(command, flags, tmp_path / "run", **slurm)
    assert weights == one_node
