"""The sharding rules of all networks: which dimension of a parameter goes over which axis of the mesh.

Each network's module has its own, `RULES`; a network without has none; its parameters are sharded over `fsdp` alone.
Patterns name a network's parts closely enough that no other's match; the autoencoders have the blocks of U-Nets.
A stage tries the rules of its Experiment first, then these (`jaxgen.sharding`). A new network's are added here.
"""

from jaxgen import sharding
from jaxgen.models import dcgan, edm_unet, mmdit, pixart, projected, qwen3, unet, z_image
from jaxgen.models.layers import embedding
from jaxgen.models.layers.stack import TRANSFORMER_RULES

RULES: tuple[sharding.Rule, ...] = (
  *TRANSFORMER_RULES,  # DiT, CLIP, BERT, T5 and Qwen3
  *mmdit.RULES,
  *pixart.RULES,
  *z_image.RULES,
  *qwen3.RULES,
  *unet.RULES,
  *edm_unet.RULES,
  *projected.RULES,
  *dcgan.RULES,
  *embedding.RULES,
)
