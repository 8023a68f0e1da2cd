"""megatron-core: model, schedule, policy, reference, checkpoints. The only importer of megatron."""

import warnings

# Spoken by megatron-core and by what it calls, about its own code: nothing that a user of this project could mend.
warnings.filterwarnings("ignore", module=r"megatron\..*")
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\..*|zs_nemo\.training\..*")
warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
