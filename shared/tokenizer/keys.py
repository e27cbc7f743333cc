"""What becomes of the keys of a tokenizer's files: tables that `described` and `files` obey and the documentation prints."""

from __future__ import annotations

from collections.abc import Mapping

from ..keys import Keys, honoured, no_effect, only

_ROLE = honoured("a string or an object with flags; added to the vocabulary where it lacks it; null takes the role away")
_EXTRA = honoured("special tokens; added to the vocabulary where it lacks them")
_CUT = no_effect("texts are cut and filled as each call asks for")
_CHAT = no_effect("texts are not framed as chats")
_HUB = no_effect("says where files lay, or how they were loaded")
_OFFSETS = no_effect("changes where a token came from, not which token it is")
_LOWER = "of BERT, ALBERT and XLNet; of others, and beside tokenizer.json of all but BERT, it must agree"

ROLE_KEYS: Keys = {f"{role}_token": _ROLE for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
"""Special tokens by role, in the order in which transformers adds those that the vocabulary lacks."""

SPECIAL_TOKENS_MAP: Keys = {
    **ROLE_KEYS,
    "additional_special_tokens": _EXTRA,
    "extra_special_tokens": _EXTRA,
}
"""special_tokens_map.json, which counts only where tokenizer_config.json has no `added_tokens_decoder`. Other keys that end with
``_token`` are special tokens without a role."""

TOKENIZER_CONFIG: Keys = {
    **SPECIAL_TOKENS_MAP,
    "tokenizer_class": honoured("names the roles and options that the class has by default; of a bare vocabulary file, one that reads it"),
    "model_specific_special_tokens": honoured("special tokens without a role"),
    "added_tokens_decoder": honoured("tokens by id, with their flags; an id that the vocabulary does not give is refused"),
    "extra_ids": honoured("T5's sentinels; of a bare vocabulary, and of the class T5Tokenizer"),
    "do_lower_case": honoured(_LOWER),
    "strip_accents": honoured("of BERT, beside tokenizer.json, too; of others it must agree"),
    "tokenize_chinese_chars": honoured("of BERT, beside tokenizer.json, too"),
    "keep_accents": honoured("of ALBERT and XLNet; of others, and beside tokenizer.json, it must agree"),
    "add_prefix_space": honoured("of byte-level BPE, beside tokenizer.json, too; of others it must agree"),
    "add_bos_token": honoured("of GPT-2's bare files; beside tokenizer.json its template counts"),
    "add_eos_token": honoured("of GPT-2's bare files; beside tokenizer.json its template counts"),
    "unk_id": honoured("must be that of the model"),
    "model_max_length": honoured("the longest input, where it is less than a million"),
    "max_len": honoured("an older name of model_max_length"),
    "padding_side": honoured("else that of padding in tokenizer.json, else the class's"),
    "truncation_side": honoured("else that of truncation in tokenizer.json, else right"),
    "model_input_names": honoured("with or without token_type_ids"),
    "clean_up_tokenization_spaces": honoured("in decoded texts, also while they are written; not of BPE, as in transformers 5"),
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": honoured("of BPE, too"),
    "polymodal": honoured("written here: cleaning before the vocabulary, and padding"),
    "split_special_tokens": only(False, None, note="special tokens are found in texts"),
    "remove_space": only(True, None, note="spaces at the ends go"),
    "sp_model_kwargs": only({}, None, note="ids are a function of the text, not sampled"),
    "do_basic_tokenize": only(True, None, note="WordPiece works on words"),
    "never_split": only([], None, note="add such words as tokens"),
    "clean_text": only(True, None, note="control characters go"),
    "wordpieces_prefix": only("##", None, note="what continues a word begins with it"),
    "init_inputs": only([], None, note="arguments of a class that is not known here"),
    "errors": no_effect("bytes that are not UTF-8 become U+FFFD, as in transformers 5"),
    "trim_offsets": _OFFSETS,
    "legacy": no_effect("transformers 5 has the new behaviour only"),
    "pad_token_type_id": no_effect("the attention mask hides it"),
    **dict.fromkeys(("max_length", "stride", "truncation_strategy", "pad_to_multiple_of"), _CUT),
    **dict.fromkeys(("chat_template", "response_template", "response_schema", "chat_control_tokens"), _CHAT),
    **dict.fromkeys(("name_or_path", "special_tokens_map_file", "full_tokenizer_file", "tokenizer_file", "vocab_file", "merges_file",
                     "is_local", "local_files_only", "trust_remote_code", "device_map", "_commit_hash", "from_slow", "use_fast",
                     "slow_tokenizer_class", "use_auth_token"), _HUB),
    **dict.fromkeys(("model_type", "vocab_size"), no_effect("config.json and the vocabulary say it")),
    "auto_map": no_effect("code beside a tokenizer is never run; the files say what counts"),
    "backend": no_effect("names the half of transformers that wrote the file"),
    "processor_class": no_effect("names a class"),
    "verbose": no_effect("says how much is printed"),
    "transformers_version": no_effect("says who wrote the file"),
}
"""tokenizer_config.json."""

OURS: Keys = {
    "clean": only("", "open_clip", None, note="what a text goes through before the vocabulary"),
    "pad_type": honoured("type id of padding"),
    "pad_fallback": honoured("id of padding where no token has that role"),
}
"""polymodal in tokenizer_config.json."""

ADDED_TOKENS: Keys = {
    "any token": honoured("its id; one that the vocabulary does not give is refused"),
}
"""added_tokens.json: every key of it is a token."""

ADDED_TOKEN: Keys = {
    "content": honoured("the token"),
    "lstrip": honoured("it takes the white space before it"),
    "rstrip": honoured("it takes the white space behind it"),
    "single_word": honoured("it is found between words only, not inside"),
    "normalized": honoured("it is looked for in the normalized text"),
    "special": honoured("decoding leaves it out, and masking leaves it alone"),
    "id": honoured("in added_tokens of tokenizer.json"),
    "__type": only("AddedToken", None, note="says that the object is a token"),
}
"""An added token, wherever it stands."""

TOKENIZER_JSON: Keys = {
    "added_tokens": honoured("with their flags"),
    "normalizer": honoured("any of the tokenizers library"),
    "pre_tokenizer": honoured("any of the tokenizers library"),
    "model": honoured("WordPiece, BPE, Unigram or WordLevel"),
    "decoder": honoured("any of the tokenizers library"),
    "post_processor": honoured("the template; one that does not hold each text exactly once is refused"),
    "padding": honoured("names side and token where tokenizer_config.json does not; lengths are what each call asks for"),
    "truncation": honoured("names the side where tokenizer_config.json does not; lengths are what each call asks for"),
    "version": only("1.0", None, note="of the file's layout"),
}
"""tokenizer.json. Inside a part, a key that the tokenizers library does not know is refused."""

MODEL: Keys = {
    **dict.fromkeys(("type", "vocab", "merges", "unk_token", "unk_id", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                     "byte_fallback", "ignore_merges", "max_input_chars_per_word"), honoured()),
    "dropout": no_effect("noise of somebody's training: ids are a function of the text"),
}
"""model in tokenizer.json."""

LEGACY: Mapping[str, frozenset[str]] = {
    "Metaspace": frozenset({"add_prefix_space", "str_rep"}),
}
"""Keys that the tokenizers library reads from older files and writes no more, by the type of the part."""

TABLES: Mapping[str, Keys] = {
    "tokenizer_config.json (transformers)": TOKENIZER_CONFIG,
    "special_tokens_map.json (transformers)": SPECIAL_TOKENS_MAP,
    "added_tokens.json (transformers)": ADDED_TOKENS,
    "A token in added_tokens, added_tokens_decoder, or a role (transformers)": ADDED_TOKEN,
    "tokenizer.json (tokenizers)": TOKENIZER_JSON,
    "model in tokenizer.json (tokenizers)": MODEL,
}
"""For the documentation, by title."""

