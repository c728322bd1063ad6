"""Measure how fast a training step is, against a textbook loop, PyTorch at its best, and JAX.

    python scripts/bench.py                     every regime of this machine (10 minutes and more)
    python scripts/bench.py --regimes tutorial,tiny --rounds 5 --output bench.json

A step is everything: making the batch, forward, backward, clipping, Adam. First each way that can
be fed our batches must give the losses of five steps in float64. Then the ways take turns in random
order, round by round, each in a process of its own. The figures are medians of rounds, and the
median of the per-round ratios with its 95 % bootstrap interval.

"textbook 2" is with two threads. The cost of JAX's batches is not counted, and compilation is not
in the rates. "Floor" is the arithmetic over real tokens at the speed of torch's own product of two
1024 x 1024 matrices on one thread. Memory: the peak of the process, and how far that is above what
it had before the first step. No timing is asserted.
"""

import json
import os
import platform
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset

from rnncls.config import Config
from rnncls.config.load import parse_config
from rnncls.data import Batch, load_task
from rnncls.steps.engines import choose
from rnncls.system.device import set_precision
from rnncls.training.states import new_state

N = 10  # the modulus, and the number of classes
E = 10  # size of the embedding
LR = 1e-3


@dataclass(frozen=True)
class Regime:
    """A size of model and batch."""

    batch_size: int
    hidden_size: int
    num_layers: int
    min_length: int
    max_length: int
    device: str = "cpu"

    def config(self, engine: str) -> Config:
        """Return the config with which rnncls trains this."""
        sections: dict[str, Any] = {
            "data": {
                "modulus": N,
                "min_length": self.min_length,
                "max_length": self.max_length,
            },
            "model": {
                "embedding_dim": E,
                "hidden_size": self.hidden_size,
                "num_layers": self.num_layers,
                "nonlinearity": "tanh",
                "recurrent_init": "default",
                "init_gain": 1.0,
            },
            # As a textbook trains it: Adam at a constant rate.
            "optimizer": {"name": "adam", "lr": LR, "weight_decay": 0.0},
            "schedule": {"name": "constant", "warmup_steps": 0, "min_lr": 0.0},
            "train": {"batch_size": self.batch_size, "max_steps": 2**40, "engine": engine},
            "device": self.device,
        }
        return parse_config(sections, "bench")

    def gigaflop(self) -> float:
        """Return the arithmetic of one step over real tokens, forward and backward.

        A layer with inputs of size D takes 6 S H D + 6 (S - B) H^2 for S tokens of B sequences:
        the recurrent product is not needed for the first token of each. The head takes 6 B H N.
        """
        h = self.hidden_size
        tokens = self.batch_size * (self.min_length + self.max_length) / 2
        later_tokens = tokens - self.batch_size

        flop = 6.0 * self.batch_size * h * N
        for layer in range(self.num_layers):
            input_size = E if layer == 0 else h
            flop += 6 * tokens * h * input_size + 6 * later_tokens * h * h
        return flop / 1e9


REGIMES = {
    "tutorial": Regime(16, 16, 1, 2, 5),
    "tiny": Regime(64, 32, 3, 2, 5),
    "medium": Regime(256, 32, 3, 2, 50),
    "large": Regime(64, 256, 3, 20, 100),
    "gpu-tiny": Regime(64, 32, 3, 2, 5, "cuda"),
    "gpu-small": Regime(256, 128, 2, 5, 50, "cuda"),
    "gpu-medium": Regime(256, 512, 2, 20, 200, "cuda"),
    "gpu-large": Regime(512, 1024, 2, 128, 512, "cuda"),
}

# Takes at least so many steps, and returns how many.
Run = Callable[[int], int]


# --- peers


class Sequences(Dataset[tuple[Tensor, int]]):
    """The data set of the textbook loop: 20,000 sequences, made beforehand."""

    def __init__(self, regime: Regime) -> None:
        generator = torch.Generator().manual_seed(0)
        shortest = regime.min_length
        longest = regime.max_length
        lengths = torch.randint(shortest, longest + 1, (20_000,), generator=generator)
        self.rows = [
            torch.randint(N, (length,), generator=generator) for length in lengths.tolist()
        ]
        self.labels = [int(row.sum()) % N for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.rows[index], self.labels[index]


class Classifier(nn.Module):
    """The model of a textbook: embedding, nn.RNN, linear head on the last hidden state."""

    def __init__(self, regime: Regime) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N, E)
        self.rnn = nn.RNN(E, regime.hidden_size, regime.num_layers, batch_first=True)
        self.head = nn.Linear(regime.hidden_size, N)

    def forward(self, padded: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(
            self.embedding(padded), lengths, batch_first=True, enforce_sorted=False
        )
        _, hidden = self.rnn(packed)
        return self.head(hidden[-1])  # type: ignore[no-any-return]


def textbook(regime: Regime) -> Run:
    """Return the loop of a textbook.

    DataLoader, pad_sequence, pack_padded_sequence, nn.RNN, clip_grad_norm_, Adam, loss.item().
    """

    def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
        rows, labels = zip(*samples, strict=True)
        lengths = torch.tensor([len(row) for row in rows])
        return pad_sequence(list(rows), batch_first=True), lengths, torch.tensor(labels)

    loader = DataLoader(
        Sequences(regime), regime.batch_size, shuffle=True, drop_last=True, collate_fn=collate
    )
    model = Classifier(regime).to(regime.device)
    optimizer = torch.optim.Adam(model.parameters(), LR)

    def forever() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            yield from loader

    batches = forever()

    def run(steps: int) -> int:
        total = 0.0
        for _ in range(steps):
            padded, lengths, labels = next(batches)
            padded = padded.to(regime.device)
            labels = labels.to(regime.device)

            optimizer.zero_grad()
            loss = F.cross_entropy(model(padded, lengths), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
        return steps

    return run


def tuned(regime: Regime, packed: bool = True) -> Run:
    """Return a loop of stock modules at their best, with our batches and fused Adam.

    `packed`: sequences are packed; otherwise padded, and each last hidden state is picked.
    """
    model = Classifier(regime).to(regime.device)
    optimizer = torch.optim.Adam(model.parameters(), LR, fused=True)
    batches = load_task(regime.config("eager")).batches(0, 2**40)

    def logits(batch: Batch) -> Tensor:
        tokens = batch.tokens
        if packed:
            _, hidden = model.rnn(tokens._replace(data=model.embedding(tokens.data)))
            return model.head(hidden[-1])  # type: ignore[no-any-return]
        padded, lengths = nn.utils.rnn.pad_packed_sequence(tokens, batch_first=True)
        output, _ = model.rnn(model.embedding(padded))
        last = lengths.to(output.device) - 1
        last_hidden = output[torch.arange(len(lengths)), last]
        return model.head(last_hidden)  # type: ignore[no-any-return]

    def run(steps: int) -> int:
        for _ in range(steps):
            batch = next(batches).to(torch.device(regime.device))
            optimizer.zero_grad()
            loss = F.cross_entropy(logits(batch), batch.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()
        return steps

    return run


def ours(regime: Regime, engine: str, threads: int = 1) -> Run:
    """Return what `rnncls train` does between two log lines."""
    config = regime.config(engine)
    train = config.train.model_copy(update={"num_threads": threads})
    config = config.model_copy(update={"train": train})
    task = load_task(config)
    state = new_state(task)
    take_steps, _ = choose(config, state.device)
    taken = take_steps(state, task)

    def run(steps: int) -> int:
        done = 0
        while done < steps:
            done += next(taken)
        return done

    return run


def jax_scan(regime: Regime) -> Run:
    """Return a loop of whole steps inside one jitted scan over 64 batches made beforehand."""
    many = jax_steps(regime)
    carry = jax_start(regime)
    batches = jax_arrays(regime, list(load_task(regime.config("eager")).batches(0, 64)))

    def run(steps: int) -> int:
        nonlocal carry
        scans = -(-steps // 64)
        for _ in range(scans):
            carry, losses = many(carry, batches)
        losses.block_until_ready()
        return scans * 64

    return run


def jax_losses(regime: Regime, batches: list[Batch]) -> list[float]:
    """Return the losses of JAX's steps on these batches, from our initial weights."""
    _, losses = jax_steps(regime)(jax_start(regime), jax_arrays(regime, batches))
    return losses.tolist()  # type: ignore[no-any-return]


def jax_start(regime: Regime) -> Any:
    """Return what the scan carries: our initial weights, Adam's two averages, and the step."""
    jnp: Any = import_module("jax.numpy")
    weights = {}
    for name, value in new_state(load_task(regime.config("eager"))).model.named_parameters():
        weights[name] = jnp.asarray(value.detach().cpu().numpy())

    first = {name: jnp.zeros_like(value) for name, value in weights.items()}
    second = {name: jnp.zeros_like(value) for name, value in weights.items()}
    return weights, first, second, 0.0


def jax_arrays(regime: Regime, batches: list[Batch]) -> Any:
    """Return tokens, padded to the longest length, lengths and labels of all batches."""
    jnp: Any = import_module("jax.numpy")
    padded = []
    for batch in batches:
        tokens, _ = nn.utils.rnn.pad_packed_sequence(
            batch.tokens, batch_first=True, total_length=regime.max_length
        )
        padded.append(tokens)

    columns = (padded, [batch.lengths for batch in batches], [batch.labels for batch in batches])
    return tuple(jnp.asarray(torch.stack(column).numpy().astype(np.int32)) for column in columns)


def jax_steps(regime: Regime) -> Any:
    """Return a jitted scan of whole training steps: (carry, batches) -> (carry, losses)."""
    jax: Any = import_module("jax")  # with or without its types, the same checks
    jnp = jax.numpy
    longest = regime.max_length
    # float32 means float32, as in `set_precision`: on a GPU, JAX's products would be TF32.
    jax.config.update("jax_default_matmul_precision", "float32")

    def loss_of(weights: Any, padded: Any, lengths: Any, labels: Any) -> Any:
        inputs = weights["embedding.weight"][padded.T]  # (T, B, E)
        alive = (jnp.arange(longest)[:, None] < lengths)[:, :, None]  # (T, B, 1)

        for layer in range(regime.num_layers):
            w_ih = weights[f"rnn.weight_ih_l{layer}"]
            w_hh = weights[f"rnn.weight_hh_l{layer}"]
            bias = weights[f"rnn.bias_ih_l{layer}"] + weights[f"rnn.bias_hh_l{layer}"]
            projected = inputs @ w_ih.T + bias

            def step(hidden: Any, now: Any, w_hh: Any = w_hh) -> Any:
                projected_now, alive_now = now
                moved = jnp.tanh(projected_now + hidden @ w_hh.T)
                new = jnp.where(alive_now, moved, hidden)
                return new, new

            start = jnp.zeros((len(lengths), regime.hidden_size))
            unroll = longest if longest <= 8 else 4
            final, inputs = jax.lax.scan(step, start, (projected, alive), unroll=unroll)

        logits = final @ weights["head.weight"].T + weights["head.bias"]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))

    def train_step(carry: Any, batch: Any) -> Any:
        weights, first, second, count = carry
        loss, gradients = jax.value_and_grad(loss_of)(weights, *batch)

        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in gradients.values()))
        scale = jnp.minimum(1.0, 1.0 / (norm + 1e-6))
        gradients = {name: g * scale for name, g in gradients.items()}

        count = count + 1
        first = {name: 0.9 * first[name] + 0.1 * g for name, g in gradients.items()}
        second = {name: 0.999 * second[name] + 0.001 * g * g for name, g in gradients.items()}
        rate = LR / (1 - 0.9**count)
        root = jnp.sqrt(1 - 0.999**count)
        moved = {}
        for name, weight in weights.items():
            moved[name] = weight - rate * first[name] / (jnp.sqrt(second[name]) / root + 1e-8)
        return (moved, first, second, count), loss

    def many(carry: Any, batches: Any) -> Any:
        return jax.lax.scan(train_step, carry, batches)

    return jax.jit(many, donate_argnums=0)


def ways(regime: Regime) -> dict[str, Callable[[], Run]]:
    """Return every way of this machine by its name."""
    makers: dict[str, Callable[[], Run]] = {
        "textbook": lambda: with_threads(1, textbook(regime)),
        "textbook 2": lambda: with_threads(2, textbook(regime)),
        "stock packed": lambda: with_threads(1, tuned(regime)),
        "stock padded": lambda: with_threads(1, tuned(regime, packed=False)),
        "rnncls eager": lambda: with_threads(1, ours(regime, "eager")),
    }
    if regime.device == "cuda":
        makers["rnncls captured"] = lambda: ours(regime, "captured")
    elif find_spec("numba"):
        makers["rnncls compiled"] = lambda: with_threads(1, ours(regime, "compiled"))
        makers["rnncls compiled 2"] = lambda: with_threads(2, ours(regime, "compiled", 2))
    if find_spec("jax"):
        makers["JAX scan"] = lambda: jax_scan(regime)
    return makers


def with_threads(threads: int, run: Run) -> Run:
    """Return a loop that runs with so many threads of torch."""

    def threaded(steps: int) -> int:
        torch.set_num_threads(threads)
        return run(steps)

    return threaded


# --- measuring


def gate(regime: Regime) -> dict[str, float]:
    """Return by way how far the losses of five steps are from those of float64 on the same device.

    It is the largest relative difference. Ways with batches of their own are left out.
    """
    batches = list(load_task(regime.config("eager")).batches(0, 5))
    expected = float64_losses(regime, batches)

    names = list(ways(regime))
    losses = {name: losses_of(regime, *name.split()[1:]) for name in names if "rnncls" in name}
    if "JAX scan" in names:
        losses["JAX scan"] = jax_losses(regime, batches)

    differences = {}
    for name, own in losses.items():
        relative = [abs(a / b - 1) for a, b in zip(own, expected, strict=True)]
        differences[name] = max(relative)
    return differences


def float64_losses(regime: Regime, batches: list[Batch]) -> list[float]:
    """Return the losses of stock modules in float64 on these batches, from our initial weights."""
    device = torch.device(regime.device)
    state = new_state(load_task(regime.config("eager")))
    model = Classifier(regime).double().to(device)
    model.load_state_dict(state.model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), LR)

    losses = []
    for batch in batches:
        tokens = batch.to(device).tokens
        labels = batch.labels.to(device)
        optimizer.zero_grad()
        _, hidden = model.rnn(tokens._replace(data=model.embedding(tokens.data)))
        loss = F.cross_entropy(model.head(hidden[-1]), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def losses_of(regime: Regime, engine: str, threads: str = "1") -> list[float]:
    """Return the losses of our first five steps, taken one at a time."""
    config = regime.config(engine)
    train = config.train.model_copy(update={"log_every": 1, "num_threads": int(threads)})
    config = config.model_copy(update={"train": train})
    task = load_task(config)
    state = new_state(task)

    losses = []
    before = 0.0
    take_steps, _ = choose(config, state.device)
    for _, _ in zip(range(5), take_steps(state, task), strict=False):
        losses.append((state.totals.loss - before) / regime.batch_size)
        before = state.totals.loss
    return losses


def measure(name: str, chosen: list[str], rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Return for each way its microseconds per step, by round, its first step and its memory.

    Each way is a process of its own, so that none has another's threads and memory; all but one
    wait.
    """
    context = get_context("spawn")
    pipes: dict[str, Any] = {}
    processes = []
    results: dict[str, dict[str, Any]] = {}
    try:
        for way in chosen:
            pipes[way], other = context.Pipe()
            process = context.Process(target=_work, args=(other, name, way), daemon=True)
            process.start()
            processes.append(process)
            other.close()  # or a process that dies would leave the pipe open, and recv waiting
            results[way] = {"us": [], **pipes[way].recv()}

        steps = {}
        for way, pipe in pipes.items():
            _take(pipe, 16)  # a warm-up
            elapsed_s, done = _take(pipe, 16)
            steps[way] = max(1, int(seconds * done / elapsed_s))

        for _ in range(rounds):
            for way in random.sample(list(pipes), len(pipes)):
                elapsed_s, done = _take(pipes[way], steps[way])
                results[way]["us"].append(1e6 * elapsed_s / done)

        for way, pipe in pipes.items():
            results[way] |= _take(pipe, 0)
    finally:
        for process in processes:
            process.kill()
    return results


def _take(pipe: Any, steps: int) -> Any:
    """Have a way take so many steps: (seconds, steps done). For 0 it ends: its use of memory."""
    pipe.send(steps)
    return pipe.recv()


def _work(pipe: Any, name: str, way: str) -> None:
    """Take as many steps as the pipe says, until it says 0. Runs in a process of its own."""
    set_precision("float32")  # for all alike: cuDNN would use TF32
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # or JAX would take most of a GPU
    if way.startswith("rnncls compiled"):
        from rnncls.steps.compiled.engine import load_program

        load_program()
    elif way.startswith("JAX"):
        import_module("jax").numpy.zeros(1).block_until_ready()

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _mebibytes("VmRSS")
    started_at = time.perf_counter()
    run = ways(REGIMES[name])[way]()
    run(1)
    pipe.send({"first_step_s": time.perf_counter() - started_at, "before_mib": before})

    while steps := pipe.recv():
        started_at = time.perf_counter()
        done = run(steps)
        pipe.send((time.perf_counter() - started_at, done))
    pipe.send({"peak_mib": _mebibytes("VmHWM"), "cuda_mib": _cuda_mebibytes(way)})


def _cuda_mebibytes(way: str) -> float:
    """Return the most memory of the GPU that this way has used; 0 without one."""
    if not torch.cuda.is_available():
        return 0.0
    used = torch.cuda.max_memory_allocated()
    if way.startswith("JAX"):
        used = import_module("jax").devices()[0].memory_stats()["peak_bytes_in_use"]
    return used / 2**20


def _mebibytes(what: str) -> float:
    """Return a figure of this process's memory, as the kernel names it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def ratio(theirs: list[float], our: list[float]) -> tuple[float, float, float]:
    """Return the median of the per-round ratios and its 95 % interval by the bootstrap."""
    ratios = np.array(theirs) / np.array(our)
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, 1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def peak_gflops() -> float:
    """Return the speed of float32 products of 1024 x 1024 on one thread of the CPU."""
    torch.set_num_threads(1)
    a = torch.randn(1024, 1024)
    b = torch.randn(1024, 1024)

    best = 0.0
    for _ in range(10):
        started_at = time.perf_counter()
        a @ b
        best = max(best, 2 * 1024**3 / (time.perf_counter() - started_at) / 1e9)
    return best


def table(name: str, results: dict[str, dict[str, Any]], floor_us: float) -> str:
    """Return the figures of a regime as a table in Markdown."""
    regime = REGIMES[name]
    shape = f"B{regime.batch_size} H{regime.hidden_size} L{regime.num_layers}"
    lengths = f"lengths {regime.min_length}-{regime.max_length}"
    textbooks = [way for way in results if way.startswith("textbook")]
    best = min(textbooks, key=lambda way: median(results[way]["us"]))

    lines = [
        f"**{name}** ({shape}, {lengths}; floor {floor_us:,.0f} us)",
        "",
        f"| way | us per step | against {best} (95 %) | against JAX | share of floor "
        "| first step, s | peak, MiB | of that training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, result in results.items():
        us = median(result["us"])
        middle, low, high = ratio(results[best]["us"], result["us"])
        against_jax = ""
        if "JAX scan" in results:
            against_jax = f"{ratio(results['JAX scan']['us'], result['us'])[0]:.2f}"

        cells = [
            f"{us:,.1f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            against_jax,
            f"{floor_us / us:.0%}" if regime.device == "cpu" else "",
            f"{result['first_step_s']:.1f}",
            f"{result['cuda_mib'] or result['peak_mib']:,.0f}",
            f"{result['peak_mib'] - result['before_mib']:,.0f}",
        ]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(
    regimes: Annotated[str, typer.Option(help="Names, or all of this machine.")] = "",
    rounds: Annotated[int, typer.Option()] = 10,
    seconds: Annotated[float, typer.Option(help="Of each way in each round.")] = 2.0,
    output: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
    only: Annotated[str, typer.Option(help="Names of ways, beside the textbook's.")] = "",
) -> None:
    """Measure, and print tables in Markdown."""
    # SIGTERM raises KeyboardInterrupt as Ctrl-C does; then `measure` ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    set_precision("float32")
    gflops = peak_gflops()
    machine = describe_machine(gflops)
    print(json.dumps(machine))

    report: dict[str, Any] = {"machine": machine, "regimes": {}}
    for name in regimes.split(",") if regimes else here():
        regime = REGIMES[name]
        differences = gate(regime)
        listed = ", ".join(f"{way} {value:.1e}" for way, value in differences.items())
        print(f"\n{name}: losses of 5 steps against float64: {listed}")

        limit = 1e-5 if regime.device == "cpu" else 1e-3
        if max(differences.values()) > limit:
            raise SystemExit(f"a way computes something else: relative difference above {limit}")

        taken = list(ways(regime))
        if only:
            taken = [way for way in taken if way in only.split(",") or way == "textbook"]
        results = measure(name, taken, rounds, seconds)
        print(table(name, results, 1e6 * regime.gigaflop() / gflops), flush=True)
        report["regimes"][name] = {"gate": differences, "results": results}

    if output:
        output.write_text(json.dumps(report, indent=1))


def here() -> list[str]:
    """Return the names of the regimes that this machine has a device for."""
    has_gpu = torch.cuda.is_available()
    return [name for name, regime in REGIMES.items() if regime.device == "cpu" or has_gpu]


def describe_machine(gflops: float) -> dict[str, Any]:
    """Return what figures depend on: devices, versions, load, precision."""
    has_gpu = torch.cuda.is_available()
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "sgemm_gflops": gflops,
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
    }


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
