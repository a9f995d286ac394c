"""Classify images: `python -m efficientnet_tf.predict --model_dir=DIR photo.jpg folder/ ...`."""

import json
import sys

from efficientnet_tf import cli


def predict(model_dir, paths, top=5, batch_size=32):
    """Classify image files with the model of a model directory.

    Args:
        model_dir: str.
        paths: sequence of str, image files.
        top: int >= 1, labels an image.
        batch_size: int >= 1.

    Yields:
        (path, [(label, probability), ...] from the likeliest on), in the order of `paths`; (path, the error's message)
        for a file that cannot be read or decoded.
    """
    import tensorflow as tf

    from efficientnet_tf.data.pipeline import eval_image, make_image_reader
    from efficientnet_tf.models.model_dir import restore_model

    model, config, class_names = restore_model(model_dir)
    top = min(top, len(class_names))

    read = make_image_reader(lambda encoded: eval_image(encoded, config))

    @tf.function
    def classify(images):
        return tf.math.top_k(tf.nn.softmax(model(images, training=False)), top)

    for start in range(0, len(paths), batch_size):
        names = paths[start : start + batch_size]
        images, errors = read(names)
        answers = {}
        if images:
            values, indices = classify(tf.stack(list(images.values())))
            for name, row, probabilities in zip(images, indices.numpy(), values.numpy(), strict=True):
                answers[name] = [(class_names[i], float(p)) for i, p in zip(row, probabilities, strict=True)]
        for name in names:
            yield name, answers.get(name, errors.get(name))


def main(args):
    """Classify and print; the status is 1 where a file could not be read."""
    from efficientnet_tf.data.folders import find_images

    failed = 0
    for path, answer in predict(args.model_dir, find_images(args.images), args.top):
        if isinstance(answer, str):
            failed += 1
            print(f"{path}: cannot be read: {answer}", file=sys.stderr)
        elif args.json:
            print(json.dumps({"path": path, "labels": [{"label": n, "probability": p} for n, p in answer]}), flush=True)
        else:
            print(f"{path}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in answer), flush=True)
    if failed:
        print(f"{failed} file(s) could not be read; all others are done", file=sys.stderr)
    return cli.EXIT_ERROR if failed else 0


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser("predict", "Classify images with a trained model.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--model_dir", required=True, help="a model directory")
    parser.add_argument("--top", type=cli.positive_int, default=5, help="labels an image")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())
