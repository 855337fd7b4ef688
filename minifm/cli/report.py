"""The one-page report of a run: `index.html`, self-contained but for the loss curve beside it."""

import gzip
import html
import lzma
from dataclasses import dataclass

HEAD = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2.5rem auto;
         padding: 0 1rem; }}
  h1 {{ font-size: 1.6rem; margin-bottom: 0; }}
  h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
  p.lead {{ margin-top: .3rem; opacity: .75; }}
  table {{ border-collapse: collapse; width: 100%; }}
  th {{ text-align: left; font-weight: normal; opacity: .75; padding-right: 1rem;
        vertical-align: top; white-space: nowrap; }}
  td, th {{ padding: .2rem 1rem .2rem 0; }}
  td.number {{ text-align: right; font-variant-numeric: tabular-nums; width: 4rem; }}
  td.bar {{ width: 60%; }}
  td.bar div {{ background: #8a8f98; height: .9rem; border-radius: 2px; }}
  tr.ours td.bar div {{ background: #c2410c; }}
  tr.ours {{ font-weight: 600; }}
  img {{ max-width: 100%; background: white; border-radius: 4px; }}
  img.pixels {{ image-rendering: pixelated; }}
  pre {{ overflow-x: auto; padding: .9rem 1rem; border-radius: 4px; font-size: .85rem;
         background: #8882; }}
  pre b {{ color: #c2410c; }}
</style>
<h1>{title}</h1>
<p class="lead">{lead}</p>
"""
PAGE = HEAD + """\
<h2>Held-out bits per byte</h2>
<p>On {documents} documents ({size}) that training never saw. Lower is better: it is the size to
which each could compress the text, counted in bits for each byte.</p>
<table>{yardsticks}</table>
<h2>Learning</h2>
<img src="loss.png" alt="Loss against steps, in training and on held-out documents">
<h2>What it writes</h2>
<p>The headers in colour are the prompts; none of them is in the corpus.</p>
{samples}
<h2>The run</h2>
<table>{facts}</table>
{act}<h2>Next</h2>
<pre>{commands}</pre>
</html>
"""


ACT = """\
<h2>Second act: digits out of noise</h2>
<p>A small UNet has learnt to undo noise on handwritten digits. What it makes of noise, a column for
each digit asked for:</p>
<img class="pixels" src="{folder}/grid.png" alt="Digits that the model made">
<p>Noise covers real digits that it has never seen; from all of that noise it makes others, of the
class that it is told:</p>
<img class="pixels" src="{folder}/strip.png" alt="Digits under more and more noise, and less again">
<p>The way, step by step:</p>
<img class="pixels" src="{folder}/denoising.gif" alt="Noise that becomes digits">
<p>Learning:</p>
<img src="{folder}/loss.png" alt="Loss against steps, in training and on held-out digits">
<table>{facts}</table>
"""


@dataclass(frozen=True)
class Report:
    """What the page says. All strings are plain text."""

    title: str
    lead: str
    held_out: list          # the held-out documents, bytes
    bits_per_byte: dict     # name -> bits per byte; the first is ours
    samples: list           # (prompt, completion)
    facts: dict             # what -> how it was
    commands: list          # to try next
    act: object = None      # the digits.Act, where there was one


def page(report):
    """The report as one HTML document."""
    size = sum(map(len, report.held_out))
    return PAGE.format(
        title=html.escape(report.title), lead=html.escape(report.lead),
        documents=len(report.held_out), size=f"{size / 1e6:.2f} MB",
        yardsticks=_bars(report.bits_per_byte),
        samples="\n".join(f"<pre><b>{html.escape(prompt)}</b>{html.escape(completion)}</pre>"
                          for prompt, completion in report.samples),
        facts=_rows(report.facts),
        act=ACT.format(folder=report.act.folder, facts=_rows(report.act.facts)) if report.act
        else "",
        commands=html.escape("\n".join(report.commands)))


def _rows(facts):
    return "".join(f"<tr><th>{html.escape(what)}</th><td>{html.escape(str(how))}</td></tr>"
                   for what, how in facts.items())


def compression(documents):
    """Bits per byte of `gzip -9` and `xz -9` on each document alone, over all their bytes."""
    size = sum(map(len, documents))
    packers = {"gzip -9": lambda text: gzip.compress(text, 9, mtime=0),
               "xz -9": lambda text: lzma.compress(text, preset=9)}
    return {name: 8 * sum(len(pack(text)) for text in documents) / size
            for name, pack in packers.items()}


def _bars(bits):
    longest, rows = max(bits.values()), []
    for place, (name, value) in enumerate(bits.items()):
        ours = ' class="ours"' if place == 0 else ""
        rows.append(f"<tr{ours}><th>{html.escape(name)}</th><td class=number>{value:.3f}</td>"
                    f'<td class=bar><div style="width:{100 * value / longest:.1f}%"></div></td>'
                    "</tr>")
    return "".join(rows)
