"""GPT-2 of Hugging Face on the characters of a text: mpirun -n 4 python -m mpi4py gpt2.py [FILE].

Needs ``pip install transformers``; the network is built from its configuration, not downloaded.
"""

import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from apts_mpi import Comm, StochasticAPTS

LENGTH, STEPS = 32, int(sys.argv[2]) if len(sys.argv) > 2 else 200

comm = Comm()
text = Path(sys.argv[1] if len(sys.argv) > 1 else __file__).read_text(encoding="utf-8")
letters = sorted(set(text))
tokens = torch.tensor([letters.index(each) for each in text])
own = tokens.tensor_split(comm.size)[comm.rank]  # this rank's part of the text
if len(own) <= LENGTH:
    sys.exit(f"the text has {len(tokens)} characters: too few for {comm.size} ranks")

torch.manual_seed(0)
sizes = {"n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4}
special = {"bos_token_id": None, "eos_token_id": None}
model = GPT2LMHeadModel(GPT2Config(vocab_size=len(letters), **sizes, **special))
optimizer = StochasticAPTS(model.named_parameters(), comm=comm, steps=STEPS, weight_decay=0.1)
draw = torch.Generator().manual_seed(comm.rank)

for step in range(STEPS):
    start = torch.randint(len(own) - LENGTH, (16,), generator=draw)
    batch = torch.stack([own[i : i + LENGTH] for i in start])
    loss = optimizer.step(lambda: model(batch, labels=batch).loss)  # with dropout
    if comm.rank == 0 and step % 20 == 19:
        print(f"step {step + 1:4d}  loss {loss:.3f}  radius {optimizer.radius:.2e}", flush=True)

with optimizer.averaged():
    model.eval()
    if comm.rank == 0:
        model.save_pretrained("gpt2-characters")
        start = tokens[None, :8]
        line = model.generate(start, max_length=LENGTH, do_sample=False, pad_token_id=0)
        print("".join(letters[i] for i in line[0]))
