"""How fast is a training step? Against the loop of a textbook, PyTorch at its best, and JAX.

    python scripts/bench.py                                   every regime of this machine (10 minutes and more)
    python scripts/bench.py --regimes tutorial,tiny --rounds 5 --output bench.json

A step is everything: making the batch, forward, backward, clipping, Adam. First each way that can be fed our batches
must give the losses of five steps in float64. Then the ways take turns in random order, round by round, each in a
process of its own; the figures are medians of rounds, and the median of the per-round ratios with its 95 % bootstrap
interval. "textbook 2" is with two threads. JAX gets its batches for nothing. Compilation is not in the rates. "Floor"
is the arithmetic over real tokens at the speed of torch's own product of two 1024 x 1024 matrices on one thread.
Memory: the peak of the process, and how far that is above what it had before the first step. No timing is asserted.
"""

import json
import os
import platform
import random
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

N, E, LR = 10, 10, 1e-3


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
        """The config with which rnncls trains this."""
        data: dict[str, Any] = {
            "modulus": N,
            "min_length": self.min_length,
            "max_length": self.max_length,
        }
        model: dict[str, Any] = {
            "embedding_dim": E,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
        }
        model |= {"nonlinearity": "tanh", "recurrent_init": "default", "init_gain": 1.0}
        optimizer: dict[str, Any] = {"name": "adam", "lr": LR, "weight_decay": 0.0}
        schedule: dict[str, Any] = {"name": "constant", "warmup_steps": 0, "min_lr": 0.0}
        train: dict[str, Any] = {
            "batch_size": self.batch_size,
            "max_steps": 2**40,
            "engine": engine,
        }
        sections: dict[str, Any] = {
            "data": data,
            "model": model,
            "optimizer": optimizer,
            "schedule": schedule,
            "train": train,
        }
        return parse_config({**sections, "device": self.device}, "bench")

    def gigaflop(self) -> float:
        """Of one step over real tokens, forward and backward: the sum over layers of 6 S H D + 6 (S - B) H^2."""
        tokens = self.batch_size * (self.min_length + self.max_length) / 2
        rest, h = tokens - self.batch_size, self.hidden_size
        layers = sum(
            6 * tokens * h * (E if layer == 0 else h) + 6 * rest * h * h
            for layer in range(self.num_layers)
        )
        return (layers + 6 * self.batch_size * h * N) / 1e9


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

Run = Callable[[int], int]  # takes at least so many steps, returns how many


# --- peers


class Sequences(Dataset[tuple[Tensor, int]]):
    """20,000 sequences, made beforehand."""

    def __init__(self, regime: Regime) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(
            regime.min_length, regime.max_length + 1, (20_000,), generator=generator
        )
        self.rows = [
            torch.randint(N, (length,), generator=generator) for length in lengths.tolist()
        ]
        self.labels = [int(row.sum()) % N for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.rows[index], self.labels[index]


class Classifier(nn.Module):
    """As in a textbook."""

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
    """DataLoader, pad_sequence, pack_padded_sequence, nn.RNN, clip_grad_norm_, Adam, loss.item()."""

    def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
        rows = [row for row, _ in samples]
        lengths = torch.tensor([len(row) for row in rows])
        return (
            pad_sequence(rows, batch_first=True),
            lengths,
            torch.tensor([label for _, label in samples]),
        )

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
            optimizer.zero_grad()
            loss = F.cross_entropy(
                model(padded.to(regime.device), lengths), labels.to(regime.device)
            )
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
        return steps

    return run


def tuned(regime: Regime, packed: bool = True) -> Run:
    """Stock modules, with our batches and fused Adam: packed, or padded with a gather of each last state."""
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
        return model.head(output[torch.arange(len(lengths)), lengths.to(output.device) - 1])  # type: ignore[no-any-return]

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
    """What `rnncls train` does between two log lines."""
    config = regime.config(engine)
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"num_threads": threads})}
    )
    task = load_task(config)
    state = new_state(task)
    take_steps, _ = choose(config, next(state.model.parameters()).device)
    taken = take_steps(state, task)

    def run(steps: int) -> int:
        done = 0
        while done < steps:
            done += next(taken)
        return done

    return run


def jax_scan(regime: Regime, losses_of: list[Batch] | None = None) -> Any:
    """Whole steps inside one jitted scan over 64 batches that are there already; padded to the longest length.

    With `losses_of`, not a Run but the losses of these batches, from our initial weights.
    """
    jax: Any = import_module("jax")  # with or without its types, the same checks
    jnp = jax.numpy

    config = regime.config("eager")
    task = load_task(config)
    initial = {
        name: jnp.asarray(value.detach().cpu().numpy())
        for name, value in new_state(task).model.named_parameters()
    }
    longest = regime.max_length

    def arrays(batches: list[Batch]) -> tuple[Any, Any, Any]:
        padded = [
            nn.utils.rnn.pad_packed_sequence(b.tokens, batch_first=True, total_length=longest)[0]
            for b in batches
        ]
        columns = (padded, [b.lengths for b in batches], [b.labels for b in batches])
        return tuple(
            jnp.asarray(torch.stack(column).numpy().astype(np.int32)) for column in columns
        )

    def loss_of(weights: Any, padded: Any, lengths: Any, labels: Any) -> Any:
        inputs = weights["embedding.weight"][padded.T]  # (T, B, E)
        alive = (jnp.arange(longest)[:, None] < lengths)[:, :, None]
        for layer in range(regime.num_layers):
            w_ih, w_hh = weights[f"rnn.weight_ih_l{layer}"], weights[f"rnn.weight_hh_l{layer}"]
            projected = (
                inputs @ w_ih.T
                + weights[f"rnn.bias_ih_l{layer}"]
                + weights[f"rnn.bias_hh_l{layer}"]
            )

            def step(hidden: Any, now: Any, w_hh: Any = w_hh) -> Any:
                new = jnp.where(now[1], jnp.tanh(now[0] + hidden @ w_hh.T), hidden)
                return new, new

            start = jnp.zeros((len(lengths), regime.hidden_size))
            final, inputs = jax.lax.scan(
                step, start, (projected, alive), unroll=longest if longest <= 8 else 4
            )
        logits = final @ weights["head.weight"].T + weights["head.bias"]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))

    def train_step(carry: Any, batch: Any) -> Any:
        weights, first, second, count = carry
        loss, gradients = jax.value_and_grad(loss_of)(weights, *batch)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in gradients.values()))
        scale, count = jnp.minimum(1.0, 1.0 / (norm + 1e-6)), count + 1
        gradients = {name: g * scale for name, g in gradients.items()}
        first = {name: 0.9 * first[name] + 0.1 * g for name, g in gradients.items()}
        second = {name: 0.999 * second[name] + 0.001 * g * g for name, g in gradients.items()}
        rate, root = LR / (1 - 0.9**count), jnp.sqrt(1 - 0.999**count)
        moved = {
            n: w - rate * first[n] / (jnp.sqrt(second[n]) / root + 1e-8) for n, w in weights.items()
        }
        return (moved, first, second, count), loss

    many = jax.jit(
        lambda carry, batches: jax.lax.scan(train_step, carry, batches), donate_argnums=0
    )
    carry = (
        initial,
        *({name: jnp.zeros_like(value) for name, value in initial.items()} for _ in range(2)),
        0.0,
    )
    if losses_of is not None:
        return many(carry, arrays(losses_of))[1].tolist()
    batches = arrays(list(load_task(config).batches(0, 64)))

    def run(steps: int) -> int:
        nonlocal carry
        for _ in range(-(-steps // 64)):
            carry, losses = many(carry, batches)
        losses.block_until_ready()
        return -(-steps // 64) * 64

    return run


def ways(regime: Regime) -> dict[str, Callable[[], Run]]:
    """Every way of this machine, by name."""
    found: dict[str, Callable[[], Run]] = {
        "textbook": lambda: with_threads(1, textbook(regime)),
        "textbook 2": lambda: with_threads(2, textbook(regime)),
        "stock packed": lambda: with_threads(1, tuned(regime)),
        "stock padded": lambda: with_threads(1, tuned(regime, packed=False)),
        "rnncls eager": lambda: with_threads(1, ours(regime, "eager")),
    }
    if regime.device == "cuda":
        found["rnncls captured"] = lambda: ours(regime, "captured")
    elif find_spec("numba"):
        found["rnncls compiled"] = lambda: with_threads(1, ours(regime, "compiled"))
        found["rnncls compiled 2"] = lambda: with_threads(2, ours(regime, "compiled", 2))
    if find_spec("jax"):
        found["JAX scan"] = lambda: jax_scan(regime)
    return found


def with_threads(threads: int, run: Run) -> Run:
    def threaded(steps: int) -> int:
        torch.set_num_threads(threads)
        return run(steps)

    return threaded


# --- measuring


def gate(regime: Regime) -> dict[str, float]:
    """The largest relative difference of the losses of five steps from those of float64 on the CPU."""
    batches = list(load_task(regime.config("eager")).batches(0, 5))
    state = new_state(load_task(regime.config("eager")))
    model = Classifier(regime).double()
    model.load_state_dict(state.model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), LR)
    expected = []
    for tokens, labels, _ in batches:
        optimizer.zero_grad()
        _, hidden = model.rnn(tokens._replace(data=model.embedding(tokens.data)))
        loss = F.cross_entropy(model.head(hidden[-1]), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        expected.append(loss.item())
    found = {
        name: losses_of(regime, *name.split()[1:])
        for name in ways(regime)
        if name.startswith("rnncls")
    }
    if "JAX scan" in ways(regime):
        found["JAX scan"] = jax_scan(regime, batches)
    return {
        name: max(abs(a / b - 1) for a, b in zip(found[name], expected, strict=True))
        for name in found
    }


def losses_of(regime: Regime, engine: str, threads: str = "1") -> list[float]:
    """The losses of the first five steps, which are taken one at a time."""
    config = regime.config(engine)
    changes = {"log_every": 1, "num_threads": int(threads)}
    config = config.model_copy(update={"train": config.train.model_copy(update=changes)})
    task = load_task(config)
    state = new_state(task)
    losses, before = [], 0.0
    take_steps, _ = choose(config, next(state.model.parameters()).device)
    for _, _ in zip(range(5), take_steps(state, task), strict=False):
        losses.append((state.totals.loss - before) / regime.batch_size)
        before = state.totals.loss
    return losses


def measure(name: str, chosen: list[str], rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Microseconds per step of each way, by round. Each way is a process of its own, so that none has another's threads
    and memory; all but one wait.
    """
    context = get_context("spawn")
    pipes, results = dict[str, Any](), dict[str, dict[str, Any]]()
    for way in chosen:
        pipes[way], other = context.Pipe()
        context.Process(target=_work, args=(other, name, way), daemon=True).start()
        results[way] = {"us": [], **pipes[way].recv()}
    steps = {}
    for way, pipe in pipes.items():
        for _ in range(2):  # the first is a warm-up
            pipe.send(16)
            elapsed_s, done = pipe.recv()
        steps[way] = max(1, int(seconds * done / elapsed_s))
    for _ in range(rounds):
        for way in random.sample(list(pipes), len(pipes)):
            pipes[way].send(steps[way])
            elapsed_s, done = pipes[way].recv()
            results[way]["us"].append(1e6 * elapsed_s / done)
    for way, pipe in pipes.items():
        pipe.send(0)
        results[way] |= pipe.recv()
    return results


def _work(pipe: Any, name: str, way: str) -> None:
    """Take as many steps as the pipe says, until it says 0."""
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
    cuda = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    pipe.send({"peak_mib": _mebibytes("VmHWM"), "cuda_mib": cuda})


def _mebibytes(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def ratio(theirs: list[float], our: list[float]) -> tuple[float, float, float]:
    """Median of the per-round ratios and its 95 % interval by the bootstrap."""
    ratios = np.array(theirs) / np.array(our)
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, 1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def peak_gflops() -> float:
    """Of float32 products of 1024 x 1024 on one thread of the CPU."""
    torch.set_num_threads(1)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = 0.0
    for _ in range(10):
        started_at = time.perf_counter()
        a @ b
        best = max(best, 2 * 1024**3 / (time.perf_counter() - started_at) / 1e9)
    return best


def table(name: str, results: dict[str, dict[str, Any]], floor_us: float) -> str:
    """Markdown."""
    regime = REGIMES[name]
    shape = f"B{regime.batch_size} H{regime.hidden_size} L{regime.num_layers}"
    best = min(
        (way for way in results if way.startswith("textbook")),
        key=lambda way: median(results[way]["us"]),
    )
    lines = [
        f"**{name}** ({shape}, lengths {regime.min_length}-{regime.max_length}; floor {floor_us:,.0f} us)",
        "",
        f"| way | us per step | against {best} (95 %) | against JAX | share of floor | first step, s "
        "| peak, MiB | of that training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, result in results.items():
        us = median(result["us"])
        jax = (
            f"{ratio(results['JAX scan']['us'], result['us'])[0]:.2f}"
            if "JAX scan" in results
            else ""
        )
        cells = [
            f"{us:,.1f}",
            "{:.2f} ({:.2f} to {:.2f})".format(*ratio(results[best]["us"], result["us"])),
            jax,
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
    here = [
        name
        for name, regime in REGIMES.items()
        if regime.device == "cpu" or torch.cuda.is_available()
    ]
    chosen = regimes.split(",") if regimes else here
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    set_precision("float32")
    gflops = peak_gflops()
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "sgemm_gflops": gflops,
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
    }
    print(json.dumps(machine))
    report: dict[str, Any] = {"machine": machine, "regimes": {}}
    for name in chosen:
        found = gate(REGIMES[name])
        limit = 1e-5 if REGIMES[name].device == "cpu" else 1e-3
        print(
            f"\n{name}: losses of 5 steps against float64: "
            + ", ".join(f"{k} {v:.1e}" for k, v in found.items())
        )
        if max(found.values()) > limit:
            raise SystemExit(f"a way computes something else: relative difference above {limit}")
        taken = [
            way
            for way in ways(REGIMES[name])
            if not only or way in only.split(",") or way == "textbook"
        ]
        results = measure(name, taken, rounds, seconds)
        print(table(name, results, 1e6 * REGIMES[name].gigaflop() / gflops), flush=True)
        report["regimes"][name] = {"gate": found, "results": results}
    if output:
        output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
