"""Adds each sample's number to a sum, in a group without an optimizer; says when it is half-way."""

import os
import sys
import threading

import torch
from torch.utils.data import TensorDataset

import paramserver as ps

samples, epochs, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
torch.manual_seed(0)
client = ps.connect()
loader = client.loader(TensorDataset(torch.arange(samples)), 4, shuffle=True, seed=5)
group = client.register("sum", {"total": torch.zeros(2, dtype=torch.float64)})
model = torch.nn.Linear(3, 2)
optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, momentum=0.9)
schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
for epoch in client.epochs(epochs, schedule):
    for (index,) in loader:
        optimizer.zero_grad()
        model(index[:, None].float().expand(-1, 3) / samples).square().mean().backward()
        optimizer.step()
        total = torch.tensor([float(index.sum()), float(len(index))], dtype=torch.float64)
        group.push_pull({"total": total})
        print(f"step {group.clock} of epoch {epoch}", flush=True)
        if os.environ.get("PARAMSERVER_LAUNCHED"):
            threading.Event().wait(pause)  # so that something can happen meanwhile
    schedule.step()
client.barrier("end")
if client.is_chief:
    total = client.state_dict("sum")["total"].tolist()
    lr = optimizer.param_groups[0]["lr"]
    weights = [w.hex() for w in model.weight.detach().flatten().tolist()]
    print(f"total {total[0]:g} of {total[1]:g} samples, lr {lr:.6f}, {weights}", flush=True)
client.finish()
