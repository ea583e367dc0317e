// SPDX-License-Identifier: Apache-2.0
#include "daemon/update/settings.hpp"

#include "protocol/qmp/commands.hpp"
#include "protocol/qmp/decode.hpp"
#include "protocol/qmp/encode.hpp"
#include "protocol/qmp/parameter_codec.hpp"

#include <fmt/format.h>

#include <utility>

namespace migrationd::update {
namespace {

Error unreadable(std::string_view what, std::string_view why) {
  return wire_error(fmt::format("the settings of the daemon before: {}: {}", what, printable(why, 1024)));
}

const qmp::Json* member(const qmp::Json& record, const char* name, bool (qmp::Json::*is)() const noexcept) {
  const auto found = record.find(name);
  return found != record.end() && ((*found).*is)() ? &*found : nullptr;
}

}  // namespace

Bytes encode_settings(const DaemonSettings& settings) {
  qmp::OrderedJson out;
  out["format"] = settings_format;
  out["version"] = settings.version;
  out["machine"] = settings.machine;
  out["origin"] = settings.origin;
  out["capabilities"] = qmp::encode(qmp::list(settings.capabilities));
  out["parameters"] = qmp::encode(settings.parameters);
  out["control-paths"] = qmp::OrderedJson(settings.control_paths);
  out["door-path"] = settings.door_path;
  const std::string text = out.dump(-1, ' ', false, qmp::OrderedJson::error_handler_t::replace);
  const ByteView bytes = as_bytes(text);
  return Bytes(bytes.begin(), bytes.end());
}

Result<DaemonSettings> decode_settings(ByteView text) {
  const qmp::Json record = qmp::Json::parse(as_text(text), nullptr, false);
  if (!record.is_object()) return unreadable("record", "no JSON object");
  const auto* const format = member(record, "format", &qmp::Json::is_number_integer);
  if (format == nullptr || *format != settings_format)
    return unreadable("format", format == nullptr ? "missing" : "of another version");
  DaemonSettings out;
  for (const auto& [name, value] :
       {std::pair{"version", &out.version}, std::pair{"machine", &out.machine}, std::pair{"origin", &out.origin}}) {
    const auto* const found = member(record, name, &qmp::Json::is_string);
    if (found == nullptr) return unreadable(name, "no string");
    *value = found->get<std::string>();
  }
  const auto* const door = member(record, "door-path", &qmp::Json::is_boolean);
  const auto* const paths = member(record, "control-paths", &qmp::Json::is_array);
  const auto* const capabilities = member(record, "capabilities", &qmp::Json::is_array);
  const auto* const parameters = member(record, "parameters", &qmp::Json::is_object);
  if (door == nullptr || paths == nullptr || capabilities == nullptr || parameters == nullptr)
    return unreadable("record", "a member is missing");
  out.door_path = door->get<bool>();
  for (const qmp::Json& path : *paths) {
    if (!path.is_boolean()) return unreadable("control-paths", "no boolean");
    out.control_paths.push_back(path.get<bool>());
  }
  auto changes = qmp::decode<qmp::SetCapabilitiesArgs>(qmp::Json{{"capabilities", *capabilities}});
  if (!changes) return unreadable("capabilities", changes.error().text());
  for (const auto& change : changes->capabilities) out.capabilities.set(change.capability, change.state);
  auto patch = qmp::decode<qmp::ParameterPatch>(*parameters);
  if (!patch) return unreadable("parameters", patch.error().text());
  auto applied = qmp::apply(qmp::MigrationParameters{}, *patch, out.capabilities);
  if (!applied) return unreadable("parameters", applied.error().text());
  out.parameters = std::move(*applied);
  return out;
}

}  // namespace migrationd::update
