// SPDX-License-Identifier: Apache-2.0
//
// migrationctl update: asks the daemon to replace itself, and then asks the new one, at the same socket, who it is.
#include "tools/migrationctl/commands.hpp"

#include <fmt/format.h>

#include <filesystem>

namespace migrationd::ctl {

namespace {

// The daemon's words when it tried and goes on; any other refusal came before it did anything.
constexpr std::string_view attempt_failed = "update: ";

Result<Json> ask_for_update(QmpClient& client, const UpdateOptions& options) {
  Json arguments = Json::object();
  if (!options.binary.empty()) {
    std::error_code ignored;
    arguments["binary"] = std::filesystem::absolute(options.binary, ignored).string();
  }
  if (options.timeout != 0) arguments["timeout"] = options.timeout * 1000;
  return client.execute("__org.migrationd_update", std::move(arguments));
}

}  // namespace

Result<int> update(QmpClient& client, const Output& output, const UpdateOptions& options) {
  MD_TRY(const Json before, client.execute("query-version"));
  auto updated = ask_for_update(client, options);
  if (!updated) {
    if (updated.error().kind() != ErrorKind::peer || !updated.error().text().starts_with(attempt_failed))
      return std::move(updated).error();
    fmt::print(stderr, "migrationctl: {}\nmigrationctl: the daemon from before goes on, with everything it had\n",
               updated.error().text());
    return exit_failed;
  }
  // Nobody is turned away meanwhile: the socket is the same one, and who connects waits in its queue.
  MD_TRY(QmpClient successor, QmpClient::connect(client.path()));
  MD_TRY(const Json after, successor.execute("query-version"));
  MD_TRY(const Json run, successor.execute("query-status"));
  Json result = std::move(*updated);
  result["from"] = before.value("package", "");
  result["to"] = after.value("package", "");
  result["status"] = run.value("status", "");
  if (output.json) {
    fmt::print("{}\n", result.dump());
    return exit_done;
  }
  const std::string machine = result.value("machine", "none");
  fmt::print("updated    {} to {}, process {}\n", result.value("from", ""), result.value("to", ""),
             result.value("pid", std::int64_t{0}));
  fmt::print("machine    {}\n",
             machine == "none" ? "none" : fmt::format("{}, {}", machine, result.value("status", "")));
  fmt::print("took       {} ms\n", result.value("milliseconds", std::uint64_t{0}));
  return exit_done;
}

}  // namespace migrationd::ctl
