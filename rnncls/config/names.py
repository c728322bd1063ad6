"""The keys that people mean by other names: `lr`, `--batch-size`, `gpu=0`.

Such a name is refused, with the whole override to use in its place. It is never applied: what a
short name stands for would change with the keys that there are.
"""

import difflib
import json
import re
import shlex
from collections.abc import Iterable
from functools import cache
from typing import Any

from rnncls.config.schema import Config, FilesConfig, SumModConfig, flatten

# What other programs and papers call a key. The name of a section stands for what is usually meant
# by it: optimizer=adam, model=lstm.
_OTHER_NAMES = {
    "data.train": "data data_dir data_file data_files data_folder data_path dataset file files "
    "folder input path paths train_data train_dir train_file train_files train_path "
    "training_data training_file training_files",
    "data.val": "dev dev_file eval_file val_data val_file val_files valid validation "
    "validation_data validation_file validation_files",
    "data.test": "test_data test_file test_files test_path",
    "data.val_fraction": "val_size val_split validation_split",
    "data.test_fraction": "test_size test_split",
    "data.sequence_field": "column content_column feature features input_column input_field "
    "sequence sequence_column sequence_columns sequence_fields text text_col text_column "
    "text_columns text_field text_fields x x_col x_column",
    "data.label_field": "class_col class_column label label_col label_column label_name labels "
    "labels_column target target_col target_column target_field y y_col y_column",
    "data.prefix_labels_field": "per_step_labels per_token_labels prefix_column prefix_field "
    "prefix_label prefix_label_field prefix_labels prefix_labels_column prefix_targets step_labels "
    "step_labels_field token_labels token_labels_field",
    "data.format": "file_format file_type filetype",
    "data.separator": "column_separator delim delimiter field_separator sep",
    "data.quoting": "quote quote_char quote_style quotechar quotes",
    "data.header": "has_header header_row headers",
    "data.encoding": "charset codec file_encoding text_encoding",
    "data.max_record_bytes": "field_size_limit max_line max_line_bytes max_line_length",
    "data.max_columns": "max_cols",
    "data.bad": "bad_lines bad_rows error_bad_lines errors ignore_errors on_bad_lines on_error "
    "skip_bad skip_bad_lines skip_bad_rows",
    "data.split": "split_by splitting stratified stratify",
    "data.rare_classes": "min_class_count rare rare_labels",
    "data.tokens": "analyzer token tokenization tokenizer",
    "data.lowercase": "do_lower_case lower lower_case lowercasing uncased",
    "data.word_boundaries": "punctuation split_punctuation token_pattern",
    "data.vocabulary_size": "bpe_size num_merges num_subwords",
    "data.end_token": "add_eos append_eos eos eos_token",
    "data.token_dropout": "unk_dropout word_dropout",
    "data.min_count": "min_freq",
    "data.max_length": "length max_len max_seq_len max_seq_length maxlen seq_len seq_length "
    "sequence_length",
    "data.min_length": "min_len",
    "data.truncate": "truncation",
    "data.batching": "bucketing",
    "data.modulus": "base classes mod n n_classes num_classes",
    "model.cell": "arch architecture cell_type model model_type rnn rnn_type",
    "model.embedding_dim": "emb emb_dim emb_size emb_sz embed_dim embed_size embedding "
    "embedding_size",
    "model.ngrams": "n_gram n_grams ngram ngram_range ngram_sizes word_ngrams wordngrams",
    "model.ngram_table": "bucket buckets hash_buckets hash_size num_buckets table_size",
    "model.positions": "pos_emb position_embedding position_embeddings positional_embedding "
    "positional_embeddings positional_encoding",
    "model.embeddings": "embedding_file embeddings_file glove pretrained_embedding "
    "pretrained_embeddings pretrained_vectors vectors word2vec word_vectors",
    "model.freeze_embeddings": "freeze freeze_embedding",
    "model.hidden_size": "hidden hidden_dim hidden_layer_sizes hidden_units n_hid n_hidden "
    "nhid num_hidden num_units rnn_size size units width",
    "model.num_layers": "depth layers n_layers nlayers num_hidden_layers",
    "model.nonlinearity": "activation",
    "model.dropout": "drop dropout_p dropout_prob dropout_rate hidden_dropout_prob",
    "model.embedding_dropout": "emb_dropout embed_dropout input_dropout spatial_dropout",
    "model.head_dropout": "classifier_dropout fc_dropout final_dropout output_dropout",
    "model.state_noise": "hidden_noise noise noise_std recurrent_noise",
    "model.bidirectional": "bi bidir",
    "model.pooling": "aggregation global_pool global_pooling pool pool_type pooling_mode "
    "pooling_strategy pooling_type readout",
    "model.skip": "residual shortcut skip_connection",
    "model.initial_state": "h0 h_0 init_state initial_hidden initial_hidden_state learn_h0 "
    "learn_initial_state learnable_h0 learned_h0 learned_initial_state train_h0 "
    "train_initial_state trainable_h0 trainable_initial_state",
    "model.init_gain": "gain",
    "model.recurrent_init": "init initialization",
    "optimizer.name": "opt optim optimiser optimizer solver",
    "optimizer.lr": "alpha base_lr eta init_lr initial_learning_rate learning_rate "
    "learning_rate_init learningrate lr_max max_lr peak_lr rate step_size",
    "optimizer.weight_decay": "decay l2 regularization wd",
    "optimizer.betas": "adam_betas beta",
    "optimizer.eps": "adam_epsilon epsilon",
    "schedule.name": "lr_schedule lr_scheduler lr_scheduler_type schedule scheduler",
    "schedule.warmup_steps": "num_warmup_steps warm_up warmup",
    "schedule.min_lr": "eta_min final_lr lr_min",
    "train.max_steps": "iterations iters max_iter max_iters n_steps num_iterations num_steps steps "
    "train_steps",
    "train.max_epochs": "epoch epochs n_epoch n_epochs num_epochs num_train_epochs",
    "train.batch_size": "batch batches batchsize bs bsz minibatch minibatch_size "
    "per_device_train_batch_size train_batch_size",
    "train.max_grad_norm": "clip clip_grad clip_norm clipnorm clipping grad_clip grad_norm "
    "gradient_clip gradient_clip_val gradient_clipping max_norm",
    "train.log_every": "log_freq log_interval log_steps logging_steps",
    "train.eval_every": "eval_freq eval_interval eval_steps val_every",
    "train.checkpoint_every": "checkpoint_interval save_every save_interval save_steps",
    "train.keep_checkpoints": "keep save_total_limit",
    "train.patience": "early_stop early_stopping early_stopping_patience n_iter_no_change",
    "train.best_metric": "metric metric_for_best_model monitor",
    "train.objective": "dense_supervision many_to_many prefix prefix_loss prefix_objective "
    "prefixes supervision",
    "train.recompute_every": "activation_checkpointing grad_checkpointing "
    "gradient_checkpointing recompute recomputation remat",
    "train.truncate_after": "backprop_steps bptt bptt_len bptt_steps tbptt tbptt_len tbptt_steps "
    "truncate_bptt truncated_bptt truncated_bptt_steps",
    "train.average_weights": "averaging ema ema_decay moving_average moving_average_decay polyak "
    "swa use_ema weight_averaging",
    "train.label_smoothing": "label_smoothing_factor smoothing",
    "train.class_weights": "balanced class_weight weighted",
    "train.precision": "amp bf16 fp16 mixed_precision",
    "train.engine": "compile",
    "train.num_threads": "num_workers threads workers",
    "seed": "manual_seed random_seed random_state rng",
    "device": "cpu cuda gpu gpus no_cuda use_cuda use_gpu",
}
ALIASES = {alias: key for key, names in _OTHER_NAMES.items() for alias in names.split()}

# Names for which there is no key, by what to use instead. Some are spelt like a key that means
# something else: vocab_size, log_dir, recurrent_dropout.
_INSTEAD = {
    "--run-dir DIRECTORY, where the run is written": "checkpoint_dir log_dir logdir out_dir output "
    "output_dir run_dir save_dir",
    "'optimizer.betas=[0.9, 0.999]', both of them at once": "adam_beta1 adam_beta2 beta1 beta2 "
    "beta_1 beta_2 moms",
    "schedule.warmup_steps, a number of steps": "pct_start warmup_fraction warmup_ratio",
    "train.batch_size; gradients are not accumulated": "accumulate_grad_batches "
    "gradient_accumulation_steps",
    "model.dropout, which acts between layers": "recurrent_dropout",
    "leave it out: the data says how many tokens there are; for subwords "
    "data.vocabulary_size": "max_features num_embeddings num_tokens num_words vocab_size",
    "--init-from CHECKPOINT, to begin with the weights of a run": "init_from pretrained warm_start",
    "data.bad=skip, which leaves out what cannot be decoded": "encoding_errors",
    "data.header=false: without a header, columns are called 1, 2, 3": "col_names colnames "
    "column_names names",
    "leave it out: a quote in a quoted cell is doubled": "doublequote escape escapechar",
    "leave it out: a packed file is known by what it begins with": "compression",
    "leave it out: no other columns are read": "usecols",
    "train.objective=prefix, which trains on a label after every token": "return_sequences",
    "leave it out: sequences are unrelated, and no state is carried between batches": "stateful",
    "rnncls sweep, which has --seeds and --grid": "config grid seeds",
    "torchrun --standalone --nproc-per-node N -m rnncls train ..., which starts N processes": "ddp "
    "devices distributed max_restarts n_gpu n_gpus nnodes nproc nproc_per_node num_devices "
    "num_gpus num_nodes num_processes strategy world_size",
    "leave it out: several processes use gloo between CPUs and NCCL between GPUs": "backend "
    "ddp_backend dist_backend",
    "--dist-timeout SECONDS, for which a process may be silent under torchrun": "ddp_timeout "
    "dist_timeout",
    "leave it out: the best checkpoint is always kept": "load_best_model_at_end "
    "restore_best_weights save_best_only",
}
_WITHOUT_KEY = {name: instead for instead, names in _INSTEAD.items() for name in names.split()}

# What switches something on and off, of keys whose values are no switches.
_SWITCHES = {
    "device": ("cuda", "cpu"),
    "data.bad": ("skip", "error"),
    "data.batching": ("bucket", "shuffle"),
    "data.quoting": ("standard", "none"),
    "data.split": ("stratified", "hash"),
    "model.initial_state": ("learned", "zeros"),
    "model.positions": ("learned", "none"),
    "train.objective": ("prefix", "sequence"),
    "train.recompute_every": ("100", "null"),
    "train.average_weights": ("0.999", "null"),
    "train.patience": ("5", "null"),
    "train.precision": ("bfloat16", "float32"),
    "train.class_weights": ("balanced", "none"),
    "train.engine": ("compiled", "eager"),
}
_YES = ("", "true", "yes", "on")
_NO = ("false", "no", "off", "none", "null", "-1")

# Keys outside the data section that generated data refuses.
_OF_FILES = ("train.max_epochs", "train.class_weights")


@cache
def known_keys() -> tuple[str, ...]:
    """Return every key, dotted, of both data sources: `("data.source", "data.modulus", ...)`."""
    of_files = [f"data.{name}" for name in FilesConfig.model_fields]
    return tuple(dict.fromkeys([*flatten(Config()), *of_files]))


def meant_keys(name: str) -> list[str]:
    """Return the keys that a wrong name may stand for: `lr` or `train.lr` -> `["optimizer.lr"]`.

    The keys of this name in all sections come first, then the table of aliases, then spelling.
    """
    section, _, leaf = normal(name).rpartition(".")
    keys = known_keys()

    same = [key for key in keys if _leaf(key) == leaf]
    if same:
        return same
    if leaf in ALIASES:
        return [ALIASES[leaf]]
    # Its spelling would lead to a key that means something else.
    if leaf in _WITHOUT_KEY:
        return []

    # Of keys that are spelt alike, one of the section that was named is likelier.
    of_section = [key for key in keys if section and key.startswith(f"{section}.")]
    for candidates in (of_section, keys):
        by_leaf = {_leaf(key): key for key in candidates}
        close = difflib.get_close_matches(leaf, list(by_leaf), n=1)
        if close:
            return [by_leaf[close[0]]]
    return []


def is_other_name(name: str) -> bool:
    """Return whether a name is another one for a key: an alias, or a key under a wrong section."""
    leaf = _leaf(normal(name))
    return leaf in ALIASES or any(_leaf(key) == leaf for key in known_keys())


def nothing_for(name: str) -> str:
    """Return what there is instead of a key that other programs have; "" if nothing is known."""
    return _WITHOUT_KEY.get(_leaf(normal(name)), "")


def section_with(keys: Iterable[str]) -> str:
    """Return the section that has all of these keys; "" if there is none, or no key."""
    leaves = set(keys)
    sections = {key.rpartition(".")[0] for key in known_keys()} - {""}
    for section in sorted(sections) if leaves else ():
        own = {_leaf(key) for key in known_keys() if key.startswith(f"{section}.")}
        if leaves <= own:
            return section
    return ""


def advice(name: str, text: str | None, source: str = "", option: str = "") -> str:
    """Return `did you mean optimizer.lr=1e-3?` for `lr` and `1e-3`; "" if nothing is known.

    `text` is the value as it was written, None if there was none. `source` is data.source, "" if
    it is not known. `option`, such as `--grid `, goes in front of each override.
    """
    keys = meant_keys(name)
    if not keys:
        return nothing_for(name)

    # Generated data has no epochs: this says what it has instead.
    in_steps = f"{option}train.max_steps={Config().train.max_steps}"
    if keys == ["train.max_epochs"] and source == "sum_mod":
        return f"did you mean {in_steps}? Generated data has no epochs"

    overrides = [option + _override(name, key, text, source) for key in keys]
    question = f"did you mean {', or '.join(overrides)}?"
    if keys == ["train.max_epochs"] and not source:
        return f"{question} Generated data has no epochs: {in_steps}"
    return question + _needed(keys[0], source)


def advice_for_file(section: str, name: str, value: Any, source: str) -> str:
    """Return `did you mean optimizer.lr? In a file: optimizer: {lr: 0.001}`; "" if unknown.

    `value` is what the file has behind the wrong name in this section, "" for the top level.
    """
    keys = meant_keys(f"{section}.{name}" if section else name)
    if not keys:
        return nothing_for(name)

    question = f"did you mean {', or '.join(keys)}?"
    if keys == ["train.max_epochs"] and source == "sum_mod":
        return f"{question} Generated data has no epochs: train.max_steps"

    # A key that is merely misspelt needs no more than the right spelling.
    key = keys[0]
    right_section, _, leaf = key.rpartition(".")
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    right_value = value_for(name, key, text)
    if len(keys) > 1 or (section == right_section and text == right_value):
        return question

    setting = f"{leaf}: {right_value}"
    in_file = f"{right_section}: {{{setting}}}" if right_section else setting
    return f"{question} In a file: {in_file}{_needed(key, source)}"


def value_for(name: str, key: str, text: str | None) -> str:
    """Return the value that a key needs where another name had `text`: gpu=0 -> cuda:0."""
    leaf = _leaf(normal(name))
    written = (text or "").strip()
    switch = written.lower()

    if key in _SWITCHES and leaf in ALIASES:
        on, off = _SWITCHES[key]
        if leaf in ("cpu", "no_cuda", "error_bad_lines"):
            on, off = off, on
        if switch in _YES:
            return on
        if switch in _NO:
            return off
        # The number of a device; or how many there are, of which a run uses one.
        if key == "device" and switch.isdecimal():
            return "cuda" if leaf == "gpus" else f"cuda:{switch}"

    # Single tokens have their embeddings anyway: ngram_range=(1, 3) is [2, 3].
    numbers = re.findall(r"[0-9]{1,2}", written)
    if key == "model.ngrams" and leaf in ALIASES and numbers:
        return json.dumps(list(range(2, max(map(int, numbers)) + 1)))

    if text is None:
        is_switch = isinstance(flatten(Config()).get(key), bool)
        return "true" if is_switch else "VALUE"
    return written


def is_switch(name: str) -> bool:
    """Return whether a name stands for something that is on or off: `--gpu`, `--bidirectional`."""
    defaults = flatten(Config())
    is_alias = _leaf(normal(name)) in ALIASES
    keys = meant_keys(name)
    return any(
        isinstance(defaults.get(key), bool) or (is_alias and key in _SWITCHES) for key in keys
    )


def is_switch_value(text: str) -> bool:
    """Return whether a text says on, off, or which of several devices."""
    return text.lower() in (*_YES, *_NO) or text.isdecimal()


def _override(name: str, key: str, text: str | None, source: str) -> str:
    """Return the override, quoted as a shell needs it, that a name with a value stands for."""
    words = [f"{key}={value_for(name, key, text)}"]

    # Alone it would be refused: generated data has no such key.
    if key == "data.train" and source != "files":
        words.insert(0, "data.source=files")
    return " ".join(map(shlex.quote, words))


def _needed(key: str, source: str) -> str:
    """Return what else the key needs, if it is not one of this data source."""
    section, _, leaf = key.rpartition(".")
    of_files = key in _OF_FILES
    of_generated = False
    if section == "data":
        of_files = leaf not in SumModConfig.model_fields
        of_generated = leaf not in FilesConfig.model_fields

    if of_files and source == "sum_mod" and key != "data.train":
        return " It needs data.source=files and data.train=FILE"
    if of_generated and source == "files":
        return " It needs data.source=sum_mod"
    return ""


def normal(name: str) -> str:
    """Return a name as keys are written: `--Batch-Size` -> `batch_size`."""
    return name.strip().lstrip("-").lower().replace("-", "_")


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]
