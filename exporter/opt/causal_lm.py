"""`OPTCausalLM`: the OPT language model with `fit`, `evaluate`, `predict` and `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.errors import full_name
from exporter.opt import model_sampler, optimizers, training_data
from exporter.opt.backbone import OPTBackbone
from exporter.opt.keras_backend import keras
from exporter.opt.keras_decoder import KerasDecoder
from exporter.opt.layers import check_positions
from exporter.opt.lora import LoRA
from exporter.opt.preprocessor import OPTCausalLMPreprocessor
from exporter.presets.listing import PresetListing
from runtime import samplers
from runtime.generation_options import GenerationOptions
from runtime.generator import Generator
from runtime.results import GenerationResult


class CausalLM(keras.Model):
    """Base of causal language models: compile defaults, training on strings, generation."""

    backbone: OPTBackbone
    preprocessor: OPTCausalLMPreprocessor | None
    _decoder: KerasDecoder | None
    _decoder_lora: LoRA | None
    end_token_ids: tuple[int, ...] | None
    default_options: GenerationOptions | None
    presets = PresetListing()

    @classmethod
    def from_preset(cls, preset: str | Path, load_weights: bool = True, **kwargs: Any) -> CausalLM:
        """Builds the model of a preset; called on `CausalLM`, it picks the class by the preset.

        Args:
            preset: a built-in preset name, a `kaggle://` or `hf://` handle, or the path of a folder.
            load_weights: if `False`, the weights stay randomly initialized.
            **kwargs: `preprocessor`, `None` to go without; `name`, `trainable` and `compile` of the
                model; values of the backbone's configuration, see `OPTBackbone.from_preset`.

        Raises:
            PresetError: if there is no such preset or it has no OPT model.
            ValueError: for a size that the weights do not have.
            TypeError: for a keyword that neither the model nor its backbone takes.
        """
        from exporter.presets.loading import load_causal_lm

        return load_causal_lm(cls, preset, load_weights=load_weights, **kwargs)

    def save_to_preset(self, preset_dir: str | Path, max_shard_size: float | None = 10) -> None:
        """Writes a preset folder in keras-hub's format: configuration, tokenizer and weights.

        Args:
            preset_dir: created where it does not exist.
            max_shard_size: most GB (2**30 bytes) of one weights file; larger models are saved in
                several. `None` for a single file.

        Raises:
            ValueError: if the folder holds a model in another format.
        """
        from exporter.presets.saving import save_causal_lm

        save_causal_lm(self, preset_dir, max_shard_size)

    def export_to_transformers(self, path: str | Path, max_shard_size: float | None = 10) -> None:
        """Writes a folder that transformers reads: `OPTForCausalLM`, and its tokenizer if there is one.

        Args:
            path: created where it does not exist.
            max_shard_size: as of `save_to_preset`.

        Raises:
            ValueError: if the folder holds a Keras preset, or transformers has no such model or
                tokenizer.
        """
        from exporter.presets.generation_defaults import carried_options
        from exporter.presets.transformers_writer import export_model

        preprocessor = self.text_preprocessor
        tokenizer = None if preprocessor is None else preprocessor.tokenizer
        options = carried_options(self.default_options, self.backbone.vocabulary_size)
        export_model(self.backbone, tokenizer, path, max_shard_size, self.end_token_ids, options)

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        *,
        weighted_metrics: Any = "auto",
        sampler: Any = "top_k",
        auto_scale_loss: bool = True,
        **kwargs: Any,
    ) -> None:
        """Configures training and generation.

        Args:
            optimizer: `"auto"` is `keras.optimizers.Adam(2e-5)`. For a model of dtype `"float16"` or
                `"bfloat16"` it runs on float32 copies of the weights, see `MasterWeightOptimizer`.
            loss: `"auto"` is sparse categorical cross-entropy from logits. Padding counts nothing in
                its sum, which Keras divides by all places of the batch; with `reduction=
                "mean_with_sample_weight"` Keras's loss is the mean over the tokens that are text.
            weighted_metrics: `"auto"` is sparse categorical accuracy.
            sampler: a name, a `runtime.samplers.Sampler` or its serialized configuration. One without
                a seed draws it at each call from Python's `random`, which
                `keras.utils.set_random_seed` sets.
            auto_scale_loss: whether the loss is scaled where computations are in float16.
            **kwargs: see `keras.Model.compile`.
        """
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = keras.optimizers.Adam(2e-5)
        if isinstance(loss, str) and loss == "auto":
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if isinstance(weighted_metrics, str) and weighted_metrics == "auto":
            weighted_metrics = [keras.metrics.SparseCategoricalAccuracy()]
        super().compile(
            optimizer=optimizers.for_dtypes(optimizer, self.dtype_policy, auto_scale_loss),
            loss=loss,
            weighted_metrics=weighted_metrics,
            auto_scale_loss=auto_scale_loss,
            **kwargs,
        )
        self.sampler = samplers.get(sampler)

    def get_compile_config(self) -> dict[str, Any]:
        """What `compile_from_config` compiles the model with: Keras's values and the sampler.

        And whether the optimizer has state, which Keras would expect of one that has taken no step.
        Both stand among what describes the optimizer, where Keras's own models, of which
        `keras.models.clone_model` makes one, do not look at them.
        """
        config = super().get_compile_config()
        if not config:  # not compiled
            return config
        sampler = model_sampler.serialize(self.sampler)
        if config["optimizer"] is None:
            return {**config, "sampler": sampler}
        own = {"sampler": sampler, "is_built": self.optimizer.built}
        return {**config, "optimizer": {**config["optimizer"], **own}}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles the model as the one that gave `config`; Keras calls it when it loads a model."""
        own = config if config["optimizer"] is None else config["optimizer"]
        others = {name: value for name, value in config.items() if name != "sampler"}
        self.compile(
            **keras.saving.deserialize_keras_object(others),
            sampler=model_sampler.deserialize(own["sampler"]),
        )
        if own.get("is_built"):
            self.optimizer.build(self.trainable_variables)  # for its state to be loaded into

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
    ) -> Any:
        """`keras.Model.fit` on strings (with a preprocessor) or on token dictionaries.

        `x` is a list, array or tensor of strings, a token dictionary, or batches of either by a
        `tf.data.Dataset`, a `keras.utils.PyDataset` or a generator. Examples are shuffled unless
        `shuffle=False`; a dataset or a generator is taken as it comes. With a preprocessor `y` is
        not looked at, for the labels are the text's next tokens, and `sample_weight` [batch] or
        [batch, sequence] multiplies the weights of the tokens, which are 1 for text and 0 for padding.
        """
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = training_data.split(
                (x, y, sample_weight), validation_split
            )
        preprocessor = self._fitting_preprocessor()
        data = training_data.dataset(
            preprocessor, x, y, sample_weight, batch_size=batch_size, shuffle=shuffle
        )
        if validation_data is not None:
            parts = validation_data if isinstance(validation_data, tuple) else (validation_data,)
            batched = isinstance(parts[0], training_data.BATCHED)
            size = None if batched else validation_batch_size or batch_size
            validation_data = training_data.dataset(preprocessor, *parts, batch_size=size)
        return super().fit(
            data,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_data=validation_data,
            shuffle=shuffle and isinstance(data, keras.utils.PyDataset),
            class_weight=class_weight,
            initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch,
            validation_steps=validation_steps,
            validation_freq=validation_freq,
        )

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """`keras.Model.evaluate` on what `fit` takes."""
        if not kwargs.get("_use_cached_eval_dataset"):  # inside fit, which has preprocessed it
            preprocessor = self._fitting_preprocessor()
            x = training_data.dataset(preprocessor, x, y, sample_weight, batch_size=batch_size)
        return super().evaluate(x, verbose=verbose, **kwargs)

    def predict(
        self, x: Any, batch_size: int | None = None, verbose: Any = "auto", **kwargs: Any
    ) -> Any:
        """`keras.Model.predict`: logits [batch, sequence, vocabulary] of strings or tokens."""
        data = training_data.dataset(self._fitting_preprocessor(), x, batch_size=batch_size)
        return super().predict(data, verbose=verbose, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """`keras.Model.train_on_batch` on strings or on token dictionaries."""
        return super().train_on_batch(*self._batch(x, y, sample_weight), **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """`keras.Model.test_on_batch` on strings or on token dictionaries."""
        return super().test_on_batch(*self._batch(x, y, sample_weight), **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """`keras.Model.predict_on_batch` on strings or on token dictionaries."""
        return super().predict_on_batch(self._batch(x)[0])

    def _batch(self, x: Any, y: Any = None, sample_weight: Any = None) -> tuple[Any, Any, Any]:
        batch = training_data.preprocess(self._fitting_preprocessor(), x, y, sample_weight)
        return keras.utils.unpack_x_y_sample_weight(batch)

    def _fitting_preprocessor(self) -> Any:
        """The preprocessor, if there is a position for each token that it makes."""
        length = getattr(self.preprocessor, "sequence_length", None)
        check_positions(length, self.backbone.max_sequence_length, "the preprocessor's sequence_length")
        return self.preprocessor

    @property
    def text_preprocessor(self) -> OPTCausalLMPreprocessor | None:
        """The preprocessor, which training takes any callable for, as one with a tokenizer.

        Raises:
            ValueError: if it is none.
        """
        preprocessor = self.preprocessor
        if preprocessor is None or isinstance(preprocessor, OPTCausalLMPreprocessor):
            return preprocessor
        raise ValueError(
            "the preprocessor must be an exporter.OPTCausalLMPreprocessor to generate, save or export, "
            f"got a {full_name(type(preprocessor))}; set `model.preprocessor` to one, or to None"
        )

    def _generator(self) -> Generator:
        preprocessor = self.text_preprocessor
        tokenizer = preprocessor.tokenizer if preprocessor else None
        positions = self.backbone.max_sequence_length
        length = preprocessor.sequence_length if preprocessor else positions
        if self._decoder is None or self._decoder_lora is not self.backbone.lora:
            self._decoder = KerasDecoder(self.backbone)  # it traces the layers as they are now
            self._decoder_lora = self.backbone.lora
        generator = Generator(
            self._decoder,
            tokenizer,
            sampler=model_sampler.seeded(self.sampler),
            max_length=min(length, positions),
            end_token_ids=self.end_token_ids,
        )
        generator.default_options = self.default_options
        return generator

    def generate(
        self,
        inputs: Any,
        max_length: int | None = None,
        stop_token_ids: Any = "auto",
        strip_prompt: bool = False,
        **more: Any,
    ) -> Any:
        """Generates text; see `runtime.Generator.generate`, which runs the loop.

        It also takes what is `more`: `options`, `timeout` and `cancel`.
        """
        return self._generator().generate(
            inputs,
            max_length=max_length,
            stop_token_ids=stop_token_ids,
            strip_prompt=strip_prompt,
            **more,
        )

    def generate_results(self, inputs: Any, **options: Any) -> list[GenerationResult]:
        """`generate` with token counts, speeds and finish reason; see `runtime.Generator`."""
        return self._generator().generate_results(inputs, **options)

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Yields the text of one prompt piece by piece; see `runtime.Generator.stream`."""
        return self._generator().stream(prompt, **options)

    def summary(
        self,
        line_length: int | None = None,
        positions: Any = None,
        print_fn: Any = None,
        **kwargs: Any,
    ) -> None:
        """`keras.Model.summary`, after what turns text into tokens where there is a preprocessor."""
        if isinstance(self.preprocessor, OPTCausalLMPreprocessor):
            tokenizer = self.preprocessor.tokenizer
            size = f"{tokenizer.vocabulary_size():,}"
            (print_fn or print)(
                f'Preprocessor: "{self.preprocessor.name}"\n'
                f" {tokenizer.name} ({type(tokenizer).__name__}), vocabulary size: {size}"
            )
        super().summary(line_length=line_length, positions=positions, print_fn=print_fn, **kwargs)


@keras.saving.register_keras_serializable(package="opt_onnx")
class OPTCausalLM(CausalLM):
    """An end-to-end OPT model for causal language modeling, as `keras_hub.models.OPTCausalLM`.

    A causal language model predicts the next token from those before it; this one trains on plain
    text with `fit()` and writes text with `generate()`, with the sampler given to `compile()`
    (top-k by default). With a preprocessor it takes strings, without one token dictionaries.

    Args:
        backbone: an `OPTBackbone`.
        preprocessor: an `OPTCausalLMPreprocessor` or `None`.
        compile: whether to compile with the defaults; without, `fit` asks for it.
        end_token_ids: each ends a text; by default the tokenizer's end token. keras-hub has one only.
        default_options: `runtime.GenerationOptions`, or their plain values, of all calls.
        trainable: whether the weights are trained; `False` freezes the backbone too.

    Call arguments:
        a dictionary of `token_ids` and `padding_mask` [batch, sequence]. Returns the logits
        [batch, sequence, vocabulary].

    Raises:
        ValueError: if the backbone is none of this project's, or for options that are not valid.
    """

    backbone_cls = OPTBackbone
    preprocessor_cls = OPTCausalLMPreprocessor

    def __init__(
        self,
        backbone: OPTBackbone,
        preprocessor: OPTCausalLMPreprocessor | None = None,
        *,
        compile: bool = True,
        end_token_ids: Sequence[int] | None = None,
        default_options: GenerationOptions | Mapping[str, Any] | None = None,
        trainable: bool = True,
        **kwargs: Any,
    ) -> None:
        if not isinstance(backbone, OPTBackbone):
            raise ValueError(
                f"backbone must be an exporter.OPTBackbone, got a {full_name(type(backbone))}; "
                "OPTBackbone.from_preset(folder) reads what keras-hub's save_to_preset(folder) writes"
            )

        # === Functional Model ===
        inputs = backbone.input
        hidden_states = backbone(inputs)
        outputs = backbone.logits(hidden_states)
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

        # === Config ===
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.end_token_ids = None if end_token_ids is None else tuple(end_token_ids)
        if isinstance(default_options, Mapping):
            default_options = GenerationOptions.from_dict(default_options)
        self.default_options = default_options
        self._decoder = None
        # A functional model has no dtype of its own; Keras scales the loss by this one.
        self.dtype_policy = backbone.dtype_policy
        self.sampler = samplers.get("top_k")
        if not trainable:  # a backbone that is frozen already stays so
            self.trainable = False
        if compile:
            self.compile()

    def get_config(self) -> dict[str, Any]:
        own: dict[str, Any] = {}
        if self.end_token_ids is not None:
            own["end_token_ids"] = list(self.end_token_ids)
        if self.default_options is not None:
            own["default_options"] = self.default_options.to_dict()
        return {
            "name": self.name,
            "trainable": self.trainable,
            **own,
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "preprocessor": keras.saving.serialize_keras_object(self.preprocessor),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> OPTCausalLM:
        parts = ("backbone", "preprocessor")
        built = {
            part: keras.saving.deserialize_keras_object(config[part], custom_objects)
            for part in parts
            if isinstance(config.get(part), dict)
        }
        return cls(**{**config, **built})
