"""Which keys a query sees, and how that is computed.

A `mask` is a value that says what may be seen. `choose` makes a `plan` of it, once for each forward pass of a stack: dense (`plan`, by
SDPA or in tiles, `tiled`), documents one by one (`choose`), windows and block tables (`sparse`), FlexAttention on CUDA (`flex`).
`attention` is the layer that projects, runs the plan and projects back; `cache` keeps keys and values while text is generated;
`position` holds the biases by distance. May import `shared.errors` and `shared.cpu` only.
"""

from .attention import Attention
from .mask import Mask

__all__ = ["Attention", "Mask"]
