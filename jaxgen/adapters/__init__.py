"""Adapters: parameters that are trained beside a frozen network, and the file formats in which people exchange them.

from jaxgen.adapters.lora import LoRA, lora
from jaxgen.adapters.textual_inversion import textual_inversion
from jaxgen.adapters.controlnet import control
from jaxgen.adapters.ip_adapter import ip_adapter
"""
