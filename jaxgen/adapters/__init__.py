"""Adapters: what is trained beside a network that stays as it is, and the files that people exchange of it.

from jaxgen.adapters.lora import LoRA, lora
from jaxgen.adapters.textual_inversion import textual_inversion
from jaxgen.adapters.controlnet import control
from jaxgen.adapters.ip_adapter import ip_adapter
"""
