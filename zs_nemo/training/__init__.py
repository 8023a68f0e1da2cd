"""megatron-core: model, schedule, policy, reference, checkpoints. The only importer of megatron."""

import warnings

# On CPU megatron-core warns once per module that it falls back to PyTorch's own kernels: there are no others here.
warnings.filterwarnings("ignore", message=r".*(Apex|Transformer Engine).*", module=r"megatron\..*")
