"""StyleGAN's mapping network."""

import torch
from torch import Tensor, nn

from gankern import ops
from gankern.nn.layers import EqualizedLinear
from gankern.nn.scaled import scaled_layers


class Mapping(nn.Module):
    """z [N, z_dim] and c [N, c_dim] -> ws [N, num_ws, w_dim] (w [N, w_dim] where num_ws is None).

    z and the embedded c are each normalised to unit RMS, joined, and passed through `num_layers` leaky ReLU layers of
    learning-rate multiplier 0.01. Raises ValueError where there is nothing to map, or no layer.
    """

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, num_ws: int | None, num_layers: int = 8):
        super().__init__()
        if z_dim < 0 or c_dim < 0 or z_dim + c_dim == 0:
            raise ValueError(f"z_dim={z_dim} and c_dim={c_dim}, expected one of them > 0 and none < 0")
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}, expected >= 1")
        self.z_dim, self.c_dim, self.w_dim, self.num_ws, self.num_layers = z_dim, c_dim, w_dim, num_ws, num_layers
        if c_dim > 0:
            self.embed = EqualizedLinear(c_dim, w_dim)
        features = [z_dim + (w_dim if c_dim > 0 else 0)] + [w_dim] * num_layers
        for i in range(num_layers):
            setattr(self, f"fc{i}", EqualizedLinear(features[i], features[i + 1], act="lrelu", lr_multiplier=0.01))
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self, z: Tensor | None, c: Tensor | None = None, truncation_psi: float = 1, truncation_cutoff: int | None = None
    ) -> Tensor:
        parts = []
        if self.z_dim > 0:
            if z is None or z.ndim != 2 or z.shape[1] != self.z_dim:
                raise ValueError(f"z has shape {None if z is None else tuple(z.shape)}, expected [N, {self.z_dim}]")
            parts.append(ops.pixel_norm(z.to(self.fc0.weight.dtype)))
        if self.c_dim > 0:
            if c is None or c.ndim != 2 or c.shape[1] != self.c_dim:
                raise ValueError(f"c has shape {None if c is None else tuple(c.shape)}, expected [N, {self.c_dim}]")
            parts.append(ops.pixel_norm(self.embed(c.to(self.embed.weight.dtype))))
        w = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        layers = [getattr(self, f"fc{i}") for i in range(self.num_layers)]
        scaled = scaled_layers([(layer, 1.0) for layer in layers], w.dtype) if ops.runs_fused(w) else {}
        for layer in layers:
            w = layer(w, scaled.get(layer))
        if self.num_ws is None:
            return w
        ws = w[:, None].expand(-1, self.num_ws, -1)
        if truncation_psi != 1:
            cut = self.num_ws if truncation_cutoff is None else truncation_cutoff
            ws = torch.cat([self.w_avg.lerp(ws[:, :cut], truncation_psi), ws[:, cut:]], 1)
        return ws
