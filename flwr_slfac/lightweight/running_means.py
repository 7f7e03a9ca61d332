"""What dropped values are restored to: the running mean of their channel.

With c a channel's running mean and s = D/K the scale of dropout, the server turns what
it has of a value x, ``s x`` or nothing, into ``c + s (x - c)`` or ``c``. Its mean is x
for any c that does not depend on the mask, as with zeros (c = 0), and its variance is
``(s - 1) (x - c)^2`` instead of ``(s - 1) x^2``: less for activations, which are far
from zero more than from each other. A control variate; ours, not the papers'. The
gradient that a device needs is the same, so the means cost no byte.
"""

from collections.abc import Mapping

import torch

from flwr_slfac.lightweight.dropout import DropMask
from flwr_slfac.lightweight.pruning.cut_mask import CutMask, FullCutMask

# Our choice: a mean over about the last ten steps, few beside a round, so that it
# follows the front as it learns, and enough to average the noise of a batch.
_DECAY = 0.9
_FULL_CUT = FullCutMask()


class RunningMeans:
    """Running means of the channels of the smashed data, over steps and devices.

    Our choice, because a mean over all devices is known as soon as one of them has sent
    a channel, and what is restored is unbiased whatever the mean.

    Parameters
    ----------
    means : mapping, optional
        What `means` returned, to go on from.

    Examples
    --------
    >>> means = RunningMeans()
    >>> for seed in range(100):  # steps
    ...     mask = DropMask((4, 3), p=0.34, seed=seed, per="example")
    ...     restored = means.restore(mask.gather(torch.full((4, 3), 5.0)), mask)
    ...     means.end_step()
    >>> restored.round()
    tensor([[5., 5., 5.],
            [5., 5., 5.],
            [5., 5., 5.],
            [5., 5., 5.]])
    """

    def __init__(
        self, means: Mapping[tuple[int, int], torch.Tensor] | None = None
    ) -> None:
        # By dimension and number of channels: devices of one run might differ in it.
        self._means = dict(means or {})
        self._seen: dict[tuple[int, int], dict[int, torch.Tensor]] = {}

    def restore(
        self,
        kept: torch.Tensor,
        mask: DropMask,
        cut: CutMask = _FULL_CUT,
        device: int = 0,
    ) -> torch.Tensor:
        """Return kept values at their places and means at the others.

        Parameters
        ----------
        kept : Tensor
            What travelled, of the mask's `kept_shape`, scaled as by `DropMask.gather`.
        mask : DropMask
            Which units these are.
        cut : CutMask, optional
            Which channels the mask's are of all, with pruning at the cut; all by
            default.
        device : int (default: 0)
            Whose values these are, one tensor of each device a step.

        Returns
        -------
        Tensor
            Of the mask's `shape` and the dtype of `kept`.

        Raises
        ------
        TrainingError
            If the values are not of `kept_shape`, or the mask not of the channels.
        """
        if mask.keeps_all:
            return mask.scatter(kept)
        dim, size, index = cut.places(mask.shape, mask.dim)
        old = self._means.get((dim, size))
        if old is None:
            old = torch.zeros(size, device=kept.device)
        shape = [1] * len(mask.shape)
        shape[dim] = -1
        centre = old[index].to(kept.dtype).reshape(shape).expand(mask.shape)
        full = centre + mask.scatter(kept - mask.scale * mask.select(centre))
        mean = old.clone()
        mean[index] = full.float().movedim(dim, 0).flatten(1).mean(dim=1)
        if bool(torch.isfinite(mean).all()):
            self._seen.setdefault((dim, size), {})[device] = mean
        return full

    def means(self) -> dict[tuple[int, int], torch.Tensor]:
        """Return the means, by dimension and number of channels."""
        return dict(self._means)

    def forget(self, device: int) -> None:
        """Leave out what was restored of a device since the last step."""
        for kind, seen in list(self._seen.items()):
            seen.pop(device, None)
            if not seen:
                del self._seen[kind]

    def end_step(self) -> None:
        """Move the means by what was restored since.

        Not before, lest a value depended on the masks of its own step.
        """
        for kind, seen in self._seen.items():
            now = torch.stack(list(seen.values())).mean(dim=0)
            old = self._means.get(kind)
            self._means[kind] = now if old is None else old.lerp(now, 1 - _DECAY)
        self._seen = {}
