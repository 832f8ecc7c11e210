"""``zoo export``: the network of a checkpoint as a file that timm loads by itself."""

import pickle

from zoo.cli.messages import CommandError, Parser


def command(args: list[str]) -> int:
    """Write the file and say how it is loaded."""
    parser = Parser(
        "zoo export",
        "Write the network of a checkpoint, without decoder, teacher and classifier, to a file that timm loads.",
        "example: zoo export runs/mae_digits/0/checkpoints/last.ckpt encoder.safetensors",
    )
    parser.add_argument("checkpoint", help="of a method that trains a network, such as MAE or ImageClassifier")
    parser.add_argument("file", help="ends with .safetensors")
    options = parser.parse(args)
    from zoo.nn.exported import export_checkpoint  # loads torch

    try:
        facts = export_checkpoint(options.checkpoint, options.file)
    except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise CommandError(f"zoo export: {reason}") from error
    arguments = "".join(f", {name}={value!r}" for name, value in facts["backbone_args"].items())
    print(f"Written to {options.file}. Load it:")
    print(f"  timm.create_model({facts['backbone']!r}, num_classes=0, checkpoint_path={options.file!r}{arguments})")
    print(f"It takes images normalised by mean={facts['mean']} and std={facts['std']}.")
    return 0
