"""A training step in the parts that a benchmark counts or times: each phase's loss and gradients, Adam, the average.

    StyleGAN2   G + (G + path length)/4 + D + (D + R1)/16, each followed by its network's Adam; the average
    ProGAN      D + G, each followed by its network's Adam; the average

Fresh networks, random or (on the meta device) no reals, no labels; without the data path.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from gankern.errors import InputError
from gankern.training import phases, progan_phases
from gankern.training.config import MODELS, adam_settings, resolve
from gankern.training.ema import update_ema
from gankern.training.guard import Guard
from gankern.training.options import Config
from gankern.training.recorder import Recorder

MAX_RESOLUTION = 2048


@dataclass(frozen=True)
class Part:
    """`run()` does it once; `often`: how many times in a step, on average. `network` is what it trains: "G" or "D"."""

    often: float
    run: Callable[[], Tensor | None]
    network: str


@dataclass
class Step:
    """The parts of a step by name, its networks, how many images it takes, and what it warns of while it runs."""

    parts: dict[str, Part]
    G: nn.Module
    D: nn.Module
    batch: int
    said: list[str] = field(default_factory=list)

    @property
    def losses(self) -> list[str]:
        """The parts that compute a loss and gradients."""
        return [name for name in self.parts if not name.startswith(("Adam", "EMA"))]

    def gradients(self, name: str) -> list[Tensor]:
        """What the loss `name` left."""
        network = self.G if self.parts[name].network == "G" else self.D
        return [p.grad for p in network.parameters() if p.grad is not None]

    def prepare(self, name: str) -> None:
        """Before a part is run alone: Adam has gradients to take, and moments; nothing else has any."""
        self.clear()
        if name.startswith("Adam"):
            network = self.parts[name].network
            next(self.parts[loss] for loss in self.losses if self.parts[loss].network == network).run()
            self.parts[name].run()

    def clear(self) -> None:
        for network in (self.G, self.D):
            network.zero_grad(set_to_none=True)


def settings(model: str, resolution: int, batch: int, channel_base: int | None, precision: str, **more) -> Config:
    """The config of the published networks. Raises InputError for sizes that can't be."""
    least = 4 if model == "progan" else 8
    if not least <= resolution <= MAX_RESOLUTION or resolution & (resolution - 1):
        raise InputError(f"--resolution {resolution}: expected a power of two from {least} to {MAX_RESOLUTION}")
    if channel_base is not None and channel_base < 1:
        raise InputError(f"--channel-base {channel_base}: expected a whole number >= 1")
    options = {"preset": model, "data": "", "batch": batch, "channel_base": channel_base, "precision": precision}
    return resolve(options | more, resolution=resolution, c_dim=0, identity="")


def batch(config: Config) -> int:
    """The images of a step; ProGAN's at its last stage."""
    return config.schedule().batches[config.resolution] if config.model == "progan" else config.batch


def no_labels(device: torch.device | str) -> Callable[[int], Tensor]:
    """What gives n samples' conditions, [n, 0]."""
    return lambda n: torch.empty(n, 0, device=device)


def _loss(step: Step, recorder: Recorder, network: str, loss: Callable[[], Tensor]) -> Tensor:
    """One forward and backward pass; the loss, which a GPU may still be computing."""
    step.G.requires_grad_(network == "G")
    step.D.requires_grad_(network == "D")
    step.clear()
    value = loss()
    value.backward()
    recorder.stats.clear()
    return value.detach()


def _updates(step: Step, adam: dict[str, Callable], often: dict[str, float], beta: float) -> None:
    """Adds Adam for both networks, with the guard against gradients that aren't finite, and the average."""
    for name, make in adam.items():
        network = getattr(step, name)
        optimizer, guard = make(list(network.parameters())), Guard(next(network.parameters()).device)
        loss = torch.zeros([], device=guard.state.device)
        step.parts[f"Adam {name}"] = Part(often[name], partial(_update, network, optimizer, guard, loss), name)
    average = copy.deepcopy(step.G).requires_grad_(False)
    step.parts["EMA"] = Part(1.0, partial(update_ema, average, step.G, beta), "G")


def _update(network: nn.Module, optimizer: torch.optim.Optimizer, guard: Guard, loss: Tensor) -> None:
    named = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    guard.check(loss, list(named), list(named.values()))
    optimizer.found_inf = guard.found_inf
    optimizer.step()


class _MetaAdam(torch.optim.Optimizer):
    """The operators of fused Adam on meta tensors, which torch.optim's own refuses."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:
        group = self.param_groups[0]
        parameters = [p for p in group["params"] if p.grad is not None]
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(m=torch.empty_like(p), v=torch.empty_like(p), step=torch.empty([], device="meta"))
        m, v, steps = ([self.state[p][key] for p in parameters] for key in ("m", "v", "step"))
        skip = self.found_inf
        torch._foreach_add_(steps, 1)
        more = {"lr": group["lr"], "beta1": group["betas"][0], "beta2": group["betas"][1], "eps": group["eps"]}
        more |= {"weight_decay": 0.0, "amsgrad": False, "maximize": False}
        torch._fused_adam_(parameters, [p.grad for p in parameters], m, v, [], steps, **more, found_inf=skip)
        torch._foreach_sub_(steps, [skip] * len(steps))  # as torch takes back the count of a skipped step


def _adam(**kwargs) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        if parameters[0].is_meta:
            return _MetaAdam(parameters, **kwargs)
        return torch.optim.Adam(parameters, fused=True, **kwargs)

    return make


# -- models ------------------------------------------------------------------------------------------------------------

DOUBLE = {"stylegan2": ("G+PL", "D+R1"), "progan": ("D",)}
"""The parts that differentiate through gradients, which a function under torch.compile refuses."""


def _compiled(G: nn.Module, D: nn.Module) -> tuple[SimpleNamespace, nn.Module]:
    """StyleGAN2's networks as `Phases` calls them, each function under torch.compile."""
    own = {"num_ws": G.num_ws, "parameters": G.parameters}
    return SimpleNamespace(
        mapping=torch.compile(G.mapping), synthesis=torch.compile(G.synthesis), **own
    ), torch.compile(D)


def stylegan2(config: Config, device: torch.device | str, compiled: bool = False) -> Step:
    """StyleGAN2's step. `compiled`: under torch.compile, without the parts that are DOUBLE."""
    G, D = phases.build_networks(config, device)
    of = phases.Phases(config, G, D, no_labels(device))
    main = phases.Phases(config, *_compiled(G, D), no_labels(device)) if compiled else of
    step, n, r = Step({}, G, D, config.batch), config.batch, config.resolution
    real = torch.empty(n, 3, r, r, device=device, dtype=of.pl_mean.dtype).uniform_(-1, 1)
    labels = torch.empty(n, 0, device=device)

    def run(losses: phases.Phases, network: str, loss: Callable[[], Tensor]) -> Tensor:
        losses.observed_w, losses.observed_lengths = [], []
        return _loss(step, losses, network, loss)

    for name, often, losses, loss in (
        ("G", 1.0, main, lambda: main.g_main(n)),
        ("G+PL", 1 / config.pl_interval, of, lambda: of.g_path_length(n)),
        ("D", 1.0, main, lambda: main.d_main(real, labels)),
        ("D+R1", 1 / config.r1_interval, of, lambda: of.d_r1(real, labels)),
    ):
        step.parts[name] = Part(often, partial(run, losses, name[0], loss), name[0])
    adam = {
        "G": _adam(**adam_settings(config.g_lr, config.pl_interval)),
        "D": _adam(**adam_settings(config.d_lr, config.r1_interval)),
    }
    _updates(step, adam, {"G": 1 + 1 / config.pl_interval, "D": 1 + 1 / config.r1_interval}, 0.999)
    return step


def progan(config: Config, device: torch.device | str, compiled: bool = False, resolution: int | None = None) -> Step:
    """ProGAN's step at a stage, nothing fading in: the last one unless `resolution` names another. `compiled`: as
    above."""
    G, D = progan_phases.build_networks(config, device)
    of = progan_phases.ProGANPhases(config, G, D, no_labels(device))
    main = of
    if compiled:
        main = progan_phases.ProGANPhases(config, torch.compile(G), torch.compile(D), no_labels(device))
    r = resolution or config.resolution
    for losses in (of, main):
        losses.go_to(config.schedule().place(float((config.resolution // r).bit_length() - 1)))
    n = of.place.batch
    step = Step({}, G, D, n)
    real = torch.empty(n, 3, r, r, device=device, dtype=of.dtype).uniform_(-1, 1)
    labels = torch.empty(n, 0, device=device)
    for name, losses, loss in (("D", of, lambda: of.d_main(real, labels)), ("G", main, lambda: main.g_main(n))):
        step.parts[name] = Part(1.0, partial(_loss, step, losses, name, loss), name)
    rates = {"G": config.g_lr, "D": config.d_lr}
    adam = {name: _adam(lr=lr, betas=(0.0, config.beta2), eps=1e-8) for name, lr in rates.items()}
    _updates(step, adam, {"G": 1.0, "D": 1.0}, config.ema_beta)
    return step


def build(config: Config, device: torch.device | str, compiled: bool = False) -> Step:
    """The step of a config's model; ProGAN's at its last stage."""
    return {"stylegan2": stylegan2, "progan": progan}[config.model](config, device, compiled)


MODEL_NAMES = tuple(MODELS)
