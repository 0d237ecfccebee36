"""llama.cpp's option names: aliases of pyllm's options, and advice for options that pyllm lacks."""

from __future__ import annotations

ALIASES = {
    "--ctx": ("--ctx-size",),
    "--grammar": ("--grammar-file",),
    "--json-schema": ("-j", "-jf", "--json-schema-file"),
    "--kl-divergence-base": ("--save-all-logits",),
    "--kv": ("-ctk", "--cache-type-k", "--cache-type"),
    "--logit-bias": ("-l",),
    "--max-size": ("--split-max-size",),
    "--max-tensors": ("--split-max-tensors",),
    "--max-tokens": ("--n-predict", "--predict"),
    "--no-special": ("--no-bos",),
    "--raw": ("-no-cnv", "--no-conversation"),
    "--save-every": ("--save-frequency",),
    "--skip": ("--from-chunk", "--chunk"),
    "--stats": ("--show-timings", "--perf"),
    "--stop": ("-r", "--reverse-prompt"),
    "--system": ("-sys", "--system-prompt"),
    "--system-file": ("-sysf", "--system-prompt-file"),
}
"""By pyllm's long name. Aliases work wherever the option does, and are not listed in help."""

_ALWAYS = "pyllm always does so; leave it out"
_DIFFERENT = {
    "-fa --flash-attn": "attention needs no setting; leave it out",
    "--jinja": "chat templates always are Jinja templates; leave it out",
    "--no-jinja": "chat templates always are Jinja templates; --chat-template-file takes another one",
    "-cnv --conversation -i --interactive -if --interactive-first -mli --multiline-input": (
        "`pyllm chat` holds a conversation"
    ),
    "-st --single-turn": "`pyllm run` gives a single answer",
    "--chat-template": "--chat-template-file takes a template out of a file",
    "--format": "--json-schema holds an answer to a schema, --output json prints it with its statistics",
    "-tb --threads-batch": "-t sets the threads of prompts and answers",
    "-C --cpu-mask -Cr --cpu-range --cpu-strict -Cb --cpu-mask-batch -Crb --cpu-range-batch --numa --prio --poll": (
        "the system decides which processors are used: taskset, numactl and nice are kept to"
    ),
    "-ub --ubatch-size -b --batch-size": "prompts are read in pieces of 512 tokens; `pyllm bench -b` tries others",
    "--mlock --no-mmap --mmap -lm --load-mode --direct-io -dio": (
        "model files are mapped into memory, and weights packed from there; leave it out"
    ),
    "-sm --split-mode": "several GPUs share the layers; --tensor-split says how",
    "--list-devices": "`pyllm doctor` lists devices",
    "-kvo --kv-offload --op-offload --repack --warmup --context-checkpoints": _ALWAYS,
    "-nr --no-repack --no-op-offload --no-host --no-warmup --swa-full -kvu --kv-unified -dt --defrag-thold": (
        "there is no such choice here; leave it out"
    ),
    "--no-context-shift": "an answer ends where the context is full, unless --context-shift is given; leave it out",
    "-e --escape": "prompts are taken as they are; in most shells, $'two\\nlines' holds a line end",
    "--no-escape": "prompts always are taken as they are; leave it out",
    "--no-display-prompt --no-perf --simple-io --log-disable -co --color": (
        "only the answer goes to standard output; leave it out"
    ),
    "--display-prompt --verbose-prompt -ptc --print-token-count": "`pyllm tokenize` shows the tokens of a text",
    "-v --verbose -lv --verbosity --log-verbosity": "--stats prints speeds, --debug shows where errors arise",
    "--override-kv": "`pyllm show --set` writes a model with other metadata",
    "--rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx": (
        "positions are as the model's file says; `pyllm show --set` writes a model with other metadata"
    ),
    "-hff --hf-file": "name the file with its repository: -m hf.co/user/repo/file.gguf",
    "-hft --hf-token": "tokens are those of huggingface_hub: the variable HF_TOKEN, or its login",
    "-mu --model-url": "-m takes a file, a name that `pyllm list` shows, or hf.co/user/repo[:quant]",
    "-cl --cache-list": "`pyllm list` shows the models that are here",
    "--check-tensors": "`pyllm pull` checks a fetched model; files are checked when they are opened",
    "--sampler-seq --sampling-seq": "--samplers takes the names, with semicolons between them",
    "-md --model-draft --draft-max --draft-min": "there are no draft models yet",
    "-mm --mmproj --image": "models read text only",
    "--prompt-cache-all": "--prompt-cache keeps the prompt and the answer; leave it out",
    "--completion-bash": "docs/command-line.md says how a shell completes pyllm's commands",
    "--keepalive --keep-alive": "a model is in memory as long as the command runs; leave it out",
    "--nowordwrap": "answers are never wrapped; leave it out",
    "--think --hidethinking --reasoning-format --reasoning-budget -rea": (
        "--reasoning shows, hides or turns off what the model writes before its answer"
    ),
}
"""Names of missing options, and the advice for each; some are Ollama's."""

DIFFERENT = {name: text for names, text in _DIFFERENT.items() for name in names.split()}
"""The same, by name."""
