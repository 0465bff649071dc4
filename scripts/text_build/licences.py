"""Who must be named for each licence in the package, and the texts of the short licences."""

from __future__ import annotations

LICENCES = {
    "Apache-2.0": "LLaMA-Factory demo data (hiyouga/LLaMA-Factory), self-instruct (yizhongw/self-instruct), AgentBench "
    "(THUDM/AgentBench), Glaive function calling v2, and text from this project's own templates.",
    "MIT": "BIG-Bench-Hard (suzgunmirac/BIG-Bench-Hard, Copyright 2022 suzgunmirac), tau-bench "
    "(sierra-research/tau-bench, Copyright 2024 Sierra), exllamav3 calibration files (turboderp-org/exllamav3, "
    "Copyright 2025 Turboderp; files that state terms of their own are left out).",
    "CC-BY-SA-4.0": "Wikipedia, by its contributors; excerpts, unchanged but for white space, empty brackets and cuts. "
    "Share alike.",
    "CC-BY-4.0": "MBPP (google-research, Austin et al. 2021); formatted as text.",
    "BSD-3-Clause": "WikiSQL (Copyright 2017 Salesforce.com, inc.), in the form packaged by mlx-examples "
    "(MIT, Copyright 2023 Apple Inc.).",
    "public domain": "Plays of William Shakespeare.",
}


WARRANTY = (
    'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT '
    "LIMITED TO THE "
    "WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE "
    "AUTHORS OR "
    "COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR "
    "OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."
)
MIT = (
    "**MIT.** Permission is hereby granted, free of charge, to any person obtaining a copy of this software and "
    "associated "
    'documentation files (the "Software"), to deal in the Software without restriction, including without '
    "limitation the "
    "rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, "
    "and to permit "
    "persons to whom the Software is furnished to do so, subject to the following conditions: The above "
    "copyright notice and "
    f"this permission notice shall be included in all copies or substantial portions of the Software. {WARRANTY}"
)
BSD = (
    "**BSD-3-Clause.** Redistribution and use in source and binary forms, with or without modification, are "
    "permitted provided "
    "that the following conditions are met: 1. Redistributions of source code must retain the above copyright "
    "notice, this "
    "list of conditions and the following disclaimer. 2. Redistributions in binary form must reproduce the "
    "above copyright "
    "notice, this list of conditions and the following disclaimer in the documentation and/or other materials "
    "provided with "
    "the distribution. 3. Neither the name of the copyright holder nor the names of its contributors may be "
    "used to endorse or "
    "promote products derived from this software without specific prior written permission. THIS SOFTWARE IS "
    "PROVIDED BY THE "
    'COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT '
    "LIMITED TO, THE "
    "IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT "
    "SHALL THE COPYRIGHT "
    "HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR "
    "CONSEQUENTIAL DAMAGES "
    "(INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR "
    "PROFITS; OR BUSINESS "
    "INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR "
    "TORT (INCLUDING "
    "NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE "
    "POSSIBILITY OF SUCH "
    "DAMAGE."
)
