"""Publishes a trained model: as a folder that every command reads as a model directory, here or on the Hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import TYPE_CHECKING

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.paths import check_path, is_hub, is_remote, split_hub
from efficientnet_tf.config.text import escape, find_reason
from efficientnet_tf.models.run_directory import check_place
from efficientnet_tf.models.run_metrics import METRICS, group_evaluations, read_metrics
from efficientnet_tf.runtime.files import write_text
from efficientnet_tf.runtime.hub import INSTALL, explain_hub_error

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import Config


def push_model(
    model_dir: str | os.PathLike[str],
    to: str,
    *,
    checkpoint: str | int | None = None,
    model_license: str | None = None,
    dataset: str | None = None,
    description: str | None = None,
    private: bool = False,
) -> str:
    """Publish the model of a run with a model card.

    The result is a model directory: `load_model`, `train.init_from` and every command take it. It also has model.keras,
    the complete config as training.yaml, the metrics, and the card as README.md. Paths of this machine are left out.

    Args:
        model_dir: A model directory.
        to: hf://user/name on the Hugging Face Hub, or a local folder that does not exist.
        checkpoint: Checkpoint to publish, as for `load_model`.
        model_license: Identifier of the license, for example apache-2.0.
        dataset: Name of the data set.
        description: Markdown text for the card, about the intended use and the limits.
        private: Whether a new repository on the Hub is private.

    Returns:
        The address of the model on the Hub, or the path of the folder.

    Raises:
        UserError: If there is no model, or it cannot be published. Nothing is then written.

    Example:
        >>> from efficientnet_tf import load_model, push_model
        >>> push_model("runs/digits", "published", model_license="apache-2.0")
        'published'
        >>> load_model("published").image_size
        32
    """
    check_push(to)
    with tempfile.TemporaryDirectory(prefix="efficientnet_tf_") as scratch:
        # A local folder is written next to its place, because it is moved there in one step.
        folder = os.path.join(scratch, "model") if is_hub(to) else f"{to.rstrip('/')}.unfinished"
        name = split_hub(to)[0] if is_hub(to) else os.path.basename(to.rstrip("/"))
        try:
            _write_folder(os.fspath(model_dir), folder, name, checkpoint, (model_license, dataset, description))
            if not is_hub(to):
                os.rename(folder, to)
                return to
            return _upload(folder, name, private)
        except OSError as error:
            raise UserError(f"to={escape(to)} cannot be written: {find_reason(error)}") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def check_push(to: str) -> None:
    """Raise UserError if nothing can be published at a place, as far as this can be known before the work.

    Args:
        to: hf://user/name, or a local folder.
    """
    check_path("to", to, hub=True)
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"Publishing a model needs huggingface_hub ({error}). {INSTALL}") from None
    if is_hub(to):
        if split_hub(to)[1]:
            raise UserError(f"to={escape(to)}: a model is always published as the newest revision. Leave out @...")
        if huggingface_hub.get_token() is None:
            raise UserError(f"to={escape(to)}: you are not logged in. Run `hf auth login`, or set HF_TOKEN.")
        return
    if is_remote(to):
        raise UserError(f"to={escape(to)} is on gs://. Publish to a local folder, and copy it.")
    if os.path.lexists(to):
        raise UserError(f"to={escape(to)} exists. Choose another folder, because nothing is overwritten.")
    check_place(to, "to")


def _write_folder(model_dir, folder, name, checkpoint, about):
    """Write everything that is published into a new folder."""
    from efficientnet_tf.config.load import dump_config
    from efficientnet_tf.hub.card import make_card
    from efficientnet_tf.models.model_dir import restore_model, write_model_dir
    from efficientnet_tf.models.run_directory import list_checkpoints
    from efficientnet_tf.models.stored import find_step

    model, config, class_names = restore_model(model_dir, checkpoint=checkpoint)
    if config.data.task != "classification":
        raise UserError(
            f"model_dir={escape(model_dir)} has data.task={config.data.task}. Only models that predict classes can be "
            "published with a model card."
        )
    step = find_step(model_dir, checkpoint)
    step = next(iter(list_checkpoints(model_dir))) if step is None else step
    lines, _ = read_metrics(model_dir)
    results = group_evaluations(lines).get(step, {})
    evaluation = results.get("ema" if config.train.ema_decay else "raw")
    published = _remove_paths(config)
    model_license, dataset, description = about
    card = make_card(
        name,
        config,
        class_names,
        evaluation,
        model_license=model_license,
        dataset=dataset,
        description=description,
    )
    write_model_dir(folder, model, _without_average(published), class_names)
    write_text(os.path.join(folder, "training.yaml"), dump_config(published))
    write_text(os.path.join(folder, "README.md"), card)
    source = os.path.join(model_dir, METRICS)
    if lines and not is_remote(model_dir):
        shutil.copyfile(source, os.path.join(folder, METRICS))


def _remove_paths(config: Config) -> Config:
    """Return a config without folders of this machine. Only their last parts stay."""
    data = {
        key: os.path.basename(value.rstrip("/"))
        for key in ("dir", "cache")
        if (value := getattr(config.data, key)) and "/" in value
    }
    train = {}
    if config.train.init_from and not is_hub(config.train.init_from):
        train["init_from"] = os.path.basename(config.train.init_from.rstrip("/"))
    return config.model_copy(
        update={"data": config.data.model_copy(update=data), "train": config.train.model_copy(update=train)}
    )


def _without_average(config):
    """Return a config of a run that keeps no EMA, because the published weights are the EMA themselves."""
    return config.model_copy(update={"train": config.train.model_copy(update={"ema_decay": 0.0})})


def _upload(folder, repository, private):
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Publish with efficientnet_tf")
    except Exception as error:  # of the library and of its HTTP client
        raise UserError(f"to=hf://{escape(repository)} cannot be published: {explain_hub_error(error)}") from None
    return str(url)
