// SPDX-License-Identifier: Apache-2.0
// Elements and commands, one after the other; what is taken is encoded again to the same bytes.
#include "protocol/stream/sections.hpp"

#include <algorithm>
#include <cstdlib>

using namespace migrationd;
using namespace migrationd::stream;

namespace {

struct Encoder {
  ByteWriter& out;
  void operator()(const SectionStart& start) const { encode_section_start(out, start.header); }
  void operator()(const SectionFull& full) const { encode_section_full(out, full.header); }
  void operator()(const SectionPart& part) const { encode_section_part(out, part.section_id); }
  void operator()(const SectionEnd& end) const { encode_section_end(out, end.section_id); }
  void operator()(const Command& command) const { encode_command(out, command); }
  void operator()(const EndOfStream&) const { encode_eof(out); }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ByteView rest = std::as_bytes(std::span(data, size));
  while (!rest.empty()) {
    auto element = decode_element(rest);
    if (element.needs_more() && element.needed() <= rest.size()) std::abort();
    if (!element.is_ready()) return 0;
    ByteWriter out;
    std::visit(Encoder{out}, element.value());
    if (out.size() != element.consumed() || !std::equal(out.view().begin(), out.view().end(), rest.begin())) {
      std::abort();
    }
    rest = rest.subspan(element.consumed());
    const auto footer = decode_footer(rest, 1, "fuzz");
    if (footer.is_ready()) rest = rest.subspan(footer.consumed());
  }
  return 0;
}
