"""Sites of videos whose frames are rows of their own inside the denoiser, side by side: hooks see one row a video."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from neuroscope.core.intervention import Call


def in_videos(act: Callable[[Tensor, Call], Tensor | None], tensor: Tensor, call: Call, frames: int) -> Tensor | None:
    """What a hook makes of a site's tensor, of which it sees one row a video.

    A site that depends on the prompt alone holds the same in all frames of a video, and a change holds for all of them. Elsewhere the
    positions of a video are those of its frames, one frame after the other.

    Args:
        act: given [video, token or position, neuron] and the call, what it becomes; None for nothing else.
        tensor: [row, token or position, neuron], with so many rows side by side for each video.
        call: the call.
        frames: how many rows each video has.
    """
    if frames == 1:
        return act(tensor, call)
    alike = call.site.text_only
    own = tensor[::frames] if alike else tensor.unflatten(0, (-1, frames)).flatten(1, 2)
    changed = act(own, call)
    made = own if changed is None else changed
    if made is own and not own.requires_grad:  # a watcher may ask for the gradients of what it sees
        return None
    return made.repeat_interleave(frames, dim=0) if alike else made.reshape(tensor.shape)
