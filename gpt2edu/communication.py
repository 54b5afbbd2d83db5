"""What training on several GPUs sends, and how long that takes: a model, before anything is started.

A step reduces the gradients, so that each GPU has the mean of its shard (reduce-scatter), and then brings to all GPUs
what they lack (all-gather): the other gradients, or with ZeRO-1 the other weights. On a ring of N GPUs either one takes
N - 1 rounds; in a round each GPU sends one Nth of the buffer to its neighbour. So however many GPUs there are, each
sends less than the buffer once for the one and once for the other: bandwidth sets the time of few GPUs, the latency of
the rounds that of many. Most of the gradients are on their way while the last micro-step's backward pass goes on
(`gpt2edu.averaging`); the last bucket and the all-gather have nothing left to hide behind.

Sources: Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations, section 3
(doi:10.1016/j.jpdc.2008.09.002); Rajbhandari et al. 2020, ZeRO, section 7 (arXiv:1910.02054); latencies of NCCL 2.28
src/graph/tuning.cc, ncclTunerConstantsDefaults, ring, protocol Simple.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2edu.config import ModelConfig
from gpt2edu.flops import flop_per_token
from gpt2edu.parameters import n_parameters, parameter_layout

GRADIENT_BYTES = 4  # an element; gradients are summed in fp32
START_S = 8.4e-6  # of one collective operation
BACKWARD_SHARE = 2 / 3  # of the work of a micro-step
MICRO_BATCH = 64  # sequences of the recipe's micro-batch; a GPU that has fewer of them takes them at once
NODE_GPUS = 8
REACHED = 0.8  # of a link's bandwidth, by large messages
WORLDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Link:
    """What a GPU sends through to its neighbour.

    Attributes:
        name: of the link.
        bytes_per_s: in one direction; between machines of all adapters together, for NCCL makes a ring for each.
        latency_s: of a round of the ring.
    """

    name: str
    bytes_per_s: float
    latency_s: float


# data sheets: 1800, 900 and 600 GB/s are sums of both directions of NVLink 5, 4 and 3
NVLINK_5 = Link("NVLink 5", 900e9, 3.4e-6)
NVLINK_4 = Link("NVLink 4", 450e9, 3.4e-6)
NVLINK_3 = Link("NVLink 3", 300e9, 3.4e-6)
PCIE_4 = Link("PCIe 4 x16", 32e9, 5.7e-6)
INFINIBAND = Link("8 x 400 Gb/s InfiniBand", 400e9, 14e-6)
ETHERNET = Link("100 Gb/s Ethernet", 12.5e9, 14e-6)
NVLINKS = {"B200": NVLINK_5, "H200": NVLINK_4, "H100": NVLINK_4, "A100": NVLINK_3}  # other GPUs are joined by PCIe


def link_of_gpu(name: str) -> Link:
    """Return what joins GPUs of this kind, or of this name as the driver says it, in a machine."""
    return next((link for kind, link in NVLINKS.items() if kind in name), PCIE_4)


@dataclass(frozen=True)
class Cluster:
    """Machines of `NODE_GPUS` GPUs each: the links inside one and between them."""

    inside: Link
    between: Link

    def ring_bytes_per_s(self, world_size: int) -> float:
        """Return what the ring's slowest link carries."""
        links = [self.inside] if world_size <= NODE_GPUS else [self.inside, self.between]
        return REACHED * min(link.bytes_per_s for link in links)

    def ring_latency_s(self, world_size: int) -> float:
        """Return the latency of the N - 1 rounds; as many of them as there are other machines cross the network."""
        n_crossings = -(-world_size // NODE_GPUS) - 1
        return (world_size - 1 - n_crossings) * self.inside.latency_s + n_crossings * self.between.latency_s


@dataclass(frozen=True)
class StepTraffic:
    """What one GPU sends in a step.

    Attributes:
        reduce_bytes: for the mean of the gradients.
        last_bucket_bytes: of these, what is complete only when backward is over: embeddings and final norm.
        gather_bytes: for the gradients (-z 0) or the weights (-z 1) of the other shards, in one message.
        n_buckets: messages for the gradients: one for each layer, and the last bucket.
    """

    reduce_bytes: float
    last_bucket_bytes: float
    gather_bytes: float
    n_buckets: int


def step_traffic(config: ModelConfig, world_size: int, zero_stage: int, weight_bytes: int = 2) -> StepTraffic:
    """Count the bytes that each GPU sends in a step.

    Args:
        config: the model's shape.
        world_size: GPUs.
        zero_stage: 0 gathers gradients, 1 weights.
        weight_bytes: of a weight that forward and backward read: 2 in bf16 (numba engine), 4 in fp32 (torch's).
    """
    share = (world_size - 1) / world_size
    reduce_bytes = share * GRADIENT_BYTES * n_parameters(config)
    last_bucket = sum(tensor.size for tensor in parameter_layout(config) if not tensor.stacked)
    gathered_bytes = weight_bytes if zero_stage else GRADIENT_BYTES
    return StepTraffic(
        reduce_bytes,
        share * GRADIENT_BYTES * last_bucket,
        share * gathered_bytes * n_parameters(config),
        config.n_layers + 1 if world_size > 1 else 0,
    )


def ring_seconds(n_bytes: float, n_messages: int, world_size: int, cluster: Cluster) -> float:
    """Return the time of a reduce-scatter or an all-gather in which each GPU sends `n_bytes`."""
    latency = n_messages * (START_S + cluster.ring_latency_s(world_size))
    return latency + n_bytes / cluster.ring_bytes_per_s(world_size)


@dataclass(frozen=True)
class Prediction:
    """A step on `world_size` GPUs, in seconds."""

    world_size: int
    compute_s: float
    backward_s: float  # of the last micro-step, part of `compute_s`
    reduce_s: float
    last_bucket_s: float  # part of `reduce_s`
    gather_s: float

    @property
    def exposed_s(self) -> float:
        """The time in which GPUs send and do not compute."""
        return max(self.last_bucket_s, self.reduce_s - self.backward_s) + self.gather_s

    @property
    def efficiency(self) -> float:
        """Share of the step in which GPUs compute."""
        return self.compute_s / (self.compute_s + self.exposed_s)

    @property
    def efficiency_after_backward(self) -> float:
        """The same if nothing were sent before the backward pass is over."""
        return self.compute_s / (self.compute_s + self.reduce_s + self.gather_s)


def predict(
    config: ModelConfig,
    seq_len: int,
    total_batch: int,
    flop_per_s: float,
    world_size: int,
    cluster: Cluster,
    zero_stage: int = 1,
    weight_bytes: int = 2,
) -> Prediction:
    """Predict a step of `total_batch` tokens, or of one sequence a GPU where that is more.

    Args:
        config: the model's shape.
        seq_len: tokens of a sequence.
        total_batch: tokens of a step.
        flop_per_s: that one GPU reaches, as if its micro-batch never became too small for it.
        world_size: GPUs.
        cluster: what joins them.
        zero_stage: as `-z`.
        weight_bytes: as in `step_traffic`.
    """
    tokens = max(total_batch, world_size * seq_len)
    n_micro_steps = max(1.0, tokens / (world_size * seq_len * MICRO_BATCH))
    traffic = step_traffic(config, world_size, zero_stage, weight_bytes)
    compute_s = tokens * flop_per_token(config, seq_len) / (world_size * flop_per_s)
    return Prediction(
        world_size,
        compute_s,
        BACKWARD_SHARE * compute_s / n_micro_steps,
        ring_seconds(traffic.reduce_bytes, traffic.n_buckets, world_size, cluster),
        ring_seconds(traffic.last_bucket_bytes, min(1, traffic.n_buckets), world_size, cluster),
        ring_seconds(traffic.gather_bytes, min(1, traffic.n_buckets), world_size, cluster),
    )


def scaling_table(config: ModelConfig, seq_len: int, total_batch: int, flop_per_s: float, gpu: str) -> list[str]:
    """Return the lines of a table: what each number of GPUs sends, and how much of a step is left for computing."""
    inside, networks = link_of_gpu(gpu), (INFINIBAND, ETHERNET)
    lines = [
        f"  Scaling of {gpu}, {NODE_GPUS} in a machine joined by {inside.name}, machines by {networks[0].name} or by",
        f"  {networks[1].name}. Predicted; -z 1, time that is not hidden behind computing, and the share of computing:",
        f"  {'GPUs':>6}{'MB sent a step':>16}{'computing':>12}{'InfiniBand':>20}{'Ethernet':>20}",
    ]
    for world_size in WORLDS:
        traffic = step_traffic(config, world_size, zero_stage=1)
        cells, compute_ms = [], 0.0
        for network in networks:
            step = predict(config, seq_len, total_batch, flop_per_s, world_size, Cluster(inside, network))
            compute_ms = 1000 * step.compute_s
            cells.append(f"{1000 * step.exposed_s:,.1f} ms  {100 * step.efficiency:3.0f} %")
        sent = (traffic.reduce_bytes + traffic.gather_bytes) / 1e6
        lines.append(f"  {world_size:>6}{sent:>16,.0f}{compute_ms:>9,.1f} ms{cells[0]:>20}{cells[1]:>20}")
    most = total_batch // seq_len
    return [*lines, f"  Above {most} GPUs a step has one sequence for each, which is more than {total_batch:,} tokens."]
