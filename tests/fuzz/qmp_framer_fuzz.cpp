// SPDX-License-Identifier: Apache-2.0
//
// The control socket's bytes: first byte is the size of the pieces, the rest the input. However it is cut, the same
// documents must come; and what the writer prints of a document must be read back as that document.
#include "protocol/qmp/json_framer.hpp"
#include "protocol/qmp/json_writer.hpp"

#include <cstdlib>

using namespace migrationd::qmp;

namespace {

// Small, so that the size limit is met too.
constexpr std::size_t max_document = 4096;
// Closing brackets are a document each; more of the same finds nothing new.
constexpr std::size_t max_documents = 64;

std::vector<Document> frame(std::string_view input, std::size_t piece) {
  JsonFramer framer(max_document);
  std::vector<Document> out;
  while (!input.empty() && out.size() < max_documents) {
    auto part = input.substr(0, piece);
    input.remove_prefix(part.size());
    while (true) {
      auto fed = framer.feed(part);
      if (fed.taken > part.size()) std::abort();
      part.remove_prefix(fed.taken);
      if (!fed.document) break;
      if (fed.document->end > framer.position()) std::abort();
      out.push_back(std::move(*fed.document));
      if (out.size() == max_documents) return out;
    }
  }
  return out;
}

bool same(const Document& a, const Document& b) {
  if (a.end != b.end || a.content.index() != b.content.index()) return false;
  if (const auto* error = std::get_if<QmpError>(&a.content))
    return error->text() == std::get<QmpError>(b.content).text();
  return std::get<Json>(a.content) == std::get<Json>(b.content);
}

void check_round_trip(const Document& document) {
  const auto* json = std::get_if<Json>(&document.content);
  if (json == nullptr || !json->is_structured()) return;
  JsonFramer framer;
  const auto fed = framer.feed(write_json(*json));
  if (!fed.document) std::abort();
  const auto* again = std::get_if<Json>(&fed.document->content);
  if (again == nullptr || *again != *json) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data + 1), size - 1);
  const auto whole = frame(input, input.size() + 1);
  const auto cut = frame(input, data[0] % 16 + 1U);
  if (whole.size() != cut.size()) std::abort();
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (!same(whole[i], cut[i])) std::abort();
    check_round_trip(whole[i]);
  }
  return 0;
}
