"""Write the policy of a checkpoint as a Hugging Face folder.

python recipes/export.py runs/quickstart exported                  # the newest checkpoint of a run
python recipes/export.py runs/quickstart exported --step 16        # another one that the run has kept
python recipes/export.py CHECKPOINT exported --model HF_FOLDER --prefix module.
                                            # a Megatron distributed checkpoint, such as NeMo 2 writes them
"""

import argparse
import shutil
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a run directory, or with --model a checkpoint folder")
    parser.add_argument("target", type=Path, help="the folder to write; must not exist")
    parser.add_argument("--step", type=int, help="checkpoint of this step instead of the newest")
    parser.add_argument("--model", help="Hugging Face folder (or package:NAME) with configuration and tokenizer")
    parser.add_argument("--prefix", default="", help="stands before the names of the weights in the checkpoint")
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="of the weights; default: the run's, or bf16")
    options = parser.parse_args(arguments)

    from zs_nemo.cluster.checkpoints import locate_policy
    from zs_nemo.config.policy import Precision
    from zs_nemo.weights.pretrained import resolve_model

    try:
        if options.target.exists():
            raise ValueError(f"{options.target} exists already; name a folder that does not")
        checkpoint, model, precision = options.source, options.model, options.precision or "bf16"
        if model is None:
            checkpoint, settings = locate_policy(options.source, options.step)
            model, precision = settings["model"], options.precision or settings["precision"]
        folder = resolve_model(model, setting="--model")
        # The heavy imports come after everything that can be known to be wrong.
        from zs_nemo.training.export import export_checkpoint

        try:
            export_checkpoint(checkpoint, folder, options.target, precision=Precision(precision), prefix=options.prefix)
        except BaseException:
            shutil.rmtree(options.target, ignore_errors=True)
            raise
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        remedy = "nothing is left of it; if the disk is full, free some room or name a folder elsewhere"
        print(f"error: {options.target} was not written ({error}); {remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing is left behind", file=sys.stderr)
        return 130
    print(options.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
