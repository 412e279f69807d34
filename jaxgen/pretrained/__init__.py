"""Other people's weights, read and written without running any of their code.

from jaxgen.pretrained import published                          # load(folder or file) -> Pretrained; save(it, folder)
from jaxgen.pretrained import weights                            # weights.get('inception'): fetched and checked
"""
