// SPDX-License-Identifier: Apache-2.0
//
// A whole session: every document is fed to a session machine that has negotiated, its arguments to the decoder of its
// command; an object by itself goes to the decoder that the input's first byte chooses. What a decoder accepts must be
// encodable, and settings that are accepted must be accepted again as they are reported. The input is also tried as a
// line of the human monitor.
#include "protocol/qmp/dispatch.hpp"
#include "protocol/qmp/hmp.hpp"
#include "protocol/qmp/json_writer.hpp"
#include "protocol/qmp/parameter_codec.hpp"
#include "protocol/qmp/session_machine.hpp"

#include <cstdlib>

using namespace migrationd::qmp;

namespace {

void check_parameters(const ParameterPatch& patch) {
  const auto applied = apply(MigrationParameters{}, patch, Capabilities{});
  if (!applied) return;
  const Json reported = Json::parse(write_json(encode_object(*applied)), nullptr, false);
  if (reported.is_discarded()) std::abort();
  const auto again = decode<ParameterPatch>(reported);
  if (!again || !apply(*applied, *again, Capabilities{})) std::abort();
}

template <class C>
void try_decoder(const Json& arguments) {
  const auto decoded = decode<typename C::Args>(arguments);
  if (!decoded) {
    if (decoded.error().text().empty()) std::abort();
    return;
  }
  if constexpr (std::is_same_v<typename C::Args, ParameterPatch>) check_parameters(*decoded);
  if constexpr (std::is_same_v<C, cmd::MigrateSetParameter>)
    (void)parse_parameter(decoded->parameter, decoded->value.value);
  if constexpr (std::is_same_v<C, cmd::Migrate> || std::is_same_v<C, cmd::Yank>) (void)encode(*decoded);
}

void try_row(const CommandInfo& row, const Json& arguments) {
  if (row.name == cmd::QmpCapabilities::name) return;
  visit_command(row, [&]<class C>() -> int {
    try_decoder<C>(arguments);
    return 0;
  });
}

void carry_out(SessionMachine& machine, std::vector<Action> actions) {
  for (std::size_t i = 0; i < actions.size(); ++i) {
    const auto* run = std::get_if<RunCommand>(&actions[i]);
    if (run == nullptr) continue;
    try_row(*run->command, run->arguments);
    auto more = machine.finished(run->serial, QmpResult<OrderedJson>(OrderedJson::object()));
    actions.insert(actions.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto& chosen = command_table()[data[0] % command_table().size()];
  std::string_view input(reinterpret_cast<const char*>(data), size);
  (void)parse_hmp(input);
  SessionMachine machine({{10, 0, 13}, ""});
  Json negotiation = Json::parse(R"({"execute":"qmp_capabilities","arguments":{"enable":["oob"]}})");
  (void)machine.feed({std::move(negotiation), 0});
  JsonFramer framer(4096);
  // Rubbish is a document per token, each with its reply; more of them than that find nothing new and take 2 ms.
  for (int documents = 0; documents < 16; ++documents) {
    auto fed = framer.feed(input);
    input.remove_prefix(fed.taken);
    if (!fed.document) break;
    if (const auto* json = std::get_if<Json>(&fed.document->content); json != nullptr && json->is_object())
      try_row(chosen, *json);
    carry_out(machine, machine.feed(std::move(*fed.document)));
  }
  return 0;
}
