// SPDX-License-Identifier: Apache-2.0
//
// The machine into a mapped-ram file and out of one. The settings that this needs are the file's, not the daemon's:
// they are put back when it has ended.
#include "tools/migrationctl/commands.hpp"

#include <fmt/format.h>

#include <filesystem>

namespace migrationd::ctl {

namespace {

// Every page once and as fast as the disk takes it; nobody answers from a file.
constexpr std::pair<const char*, bool> wanted_capabilities[] = {{"xbzrle", false},      {"postcopy-ram", false},
                                                                {"return-path", false}, {"switchover-ack", false},
                                                                {"multifd", false},     {"mapped-ram", true}};

class BorrowedSettings {
 public:
  explicit BorrowedSettings(QmpClient& client) : client_(client) {}

  Result<void> take(bool direct) {
    MD_TRY(const Json capabilities, client_.execute("query-migrate-capabilities"));
    MD_TRY(const Json parameters, client_.execute("query-migrate-parameters"));
    Json wanted = Json::array();
    for (const Json& one : capabilities) {
      for (const auto& [name, state] : wanted_capabilities) {
        if (one.value("capability", "") != name || one.value("state", false) == state) continue;
        wanted.push_back({{"capability", name}, {"state", state}});
        capabilities_.push_back(one);
      }
    }
    MD_CHECK(client_.execute("migrate-set-capabilities", {{"capabilities", std::move(wanted)}}));
    for (const char* name : {"max-bandwidth", "direct-io"}) parameters_[name] = parameters.at(name);
    MD_CHECK(client_.execute("migrate-set-parameters", {{"max-bandwidth", 0}, {"direct-io", direct}}));
    return {};
  }

  // A migration that goes on keeps them, for capabilities cannot change meanwhile.
  Result<void> give_back() {
    if (!parameters_.empty()) MD_CHECK(client_.execute("migrate-set-parameters", parameters_));
    if (!capabilities_.empty())
      MD_CHECK(client_.execute("migrate-set-capabilities", {{"capabilities", capabilities_}}));
    return {};
  }

 private:
  QmpClient& client_;
  Json capabilities_ = Json::array();
  Json parameters_ = Json::object();
};

// The structured form takes every name, also one with ",offset=" in it. The daemon's directory is another one than
// ours.
Json file_address(const std::string& path) {
  const std::string absolute = std::filesystem::absolute(path);
  const Json address{{"transport", "file"}, {"filename", absolute}, {"offset", 0}};
  return {{"channels", Json::array({Json{{"channel-type", "main"}, {"addr", address}}})}};
}

Result<int> run(QmpClient& client, const Output& output, const FileOptions& options, const char* command,
                bool incoming) {
  BorrowedSettings settings(client);
  auto taken = settings.take(options.direct);
  Json arguments = file_address(options.path);
  if (incoming) arguments["exit-on-error"] = false;
  auto started = taken ? client.execute(command, std::move(arguments)) : Result<Json>(taken.error());
  auto code = started ? watch_migration(client, output, incoming) : Result<int>(started.error());
  if (code && *code == exit_interrupted) return code;
  auto given_back = settings.give_back();
  if (!code) return code;
  if (!given_back) return std::move(given_back).error().with("put the daemon's settings back");
  return code;
}

}  // namespace

Result<int> save(QmpClient& client, const Output& output, const FileOptions& options) {
  return run(client, output, options, "migrate", false);
}

Result<int> load(QmpClient& client, const Output& output, const FileOptions& options) {
  return run(client, output, options, "migrate-incoming", true);
}

}  // namespace migrationd::ctl
