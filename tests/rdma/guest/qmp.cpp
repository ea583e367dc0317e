// SPDX-License-Identifier: Apache-2.0
//
// qmp: one command to a control socket, for the scripts in the guest, where there is no Python.
//
//   qmp [OPTIONS] SOCKET COMMAND [ARGUMENTS-AS-JSON]
//
//   --get POINTER           print only the value there ("" when there is none), strings without quotes
//   --until POINTER WORDS   ask again until the value there is one of the words (separated by commas), 60 s at most
//   --never WORDS           with --until: a value that ends the waiting as a failure, unless it is wanted
//
// A socket that is not there yet is waited for, 20 s at most. Exit status 1 with the error's text on standard error.
#include "tools/migrationctl/qmp_client.hpp"

#include <chrono>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <thread>

namespace {

using migrationd::Error;
using migrationd::Result;
using migrationd::ctl::Json;
using migrationd::ctl::QmpClient;
using std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto socket_wait = 20s;
constexpr auto value_wait = 60s;
constexpr auto step = 30ms;

struct Request {
  std::string get;
  std::string until;
  std::string words;
  std::string never;
  std::string socket;
  std::string command;
  Json arguments = Json::object();
};

bool is_one_of(std::string_view value, std::string_view words) {
  while (!words.empty()) {
    const auto end = words.find(',');
    if (words.substr(0, end) == value) return true;
    if (end == std::string_view::npos) break;
    words.remove_prefix(end + 1);
  }
  return false;
}

std::string value_at(const Json& json, const std::string& pointer) {
  const Json::json_pointer where(pointer);
  if (!json.contains(where)) return "";
  const Json& value = json.at(where);
  return value.is_string() ? value.get<std::string>() : value.dump();
}

Result<QmpClient> connect(const std::string& path) {
  const auto deadline = steady_clock::now() + socket_wait;
  while (true) {
    auto client = QmpClient::connect(path);
    if (client.has_value() || steady_clock::now() > deadline) return client;
    std::this_thread::sleep_for(step);
  }
}

Result<Json> run(const Request& request) {
  MD_TRY(QmpClient client, connect(request.socket));
  const auto deadline = steady_clock::now() + value_wait;
  while (true) {
    MD_TRY(Json answer, client.execute(request.command, request.arguments));
    if (request.until.empty()) return answer;
    const std::string value = value_at(answer, request.until);
    if (is_one_of(value, request.words)) return answer;
    if (is_one_of(value, request.never)) return migrationd::machine_error("became " + answer.dump());
    if (steady_clock::now() > deadline) return migrationd::machine_error("stays " + answer.dump());
    std::this_thread::sleep_for(step);
  }
}

bool parse(std::span<char*> words, Request& out) {
  std::size_t at = 1;
  const auto next = [&]() -> std::string { return at < words.size() ? words[at++] : ""; };
  while (at < words.size() && std::string_view(words[at]).starts_with("--")) {
    const std::string option = next();
    if (option == "--get") {
      out.get = next();
    } else if (option == "--until") {
      out.until = next();
      out.words = next();
    } else if (option == "--never") {
      out.never = next();
    } else {
      return false;
    }
  }
  out.socket = next();
  out.command = next();
  const std::string arguments = next();
  if (!arguments.empty()) out.arguments = Json::parse(arguments, nullptr, false);
  return !out.command.empty() && out.arguments.is_object() && at == words.size();
}

}  // namespace

int main(int count, char** words) {
  Request request;
  if (!parse({words, static_cast<std::size_t>(count)}, request)) {
    std::fputs("usage: qmp [--get POINTER] [--until POINTER WORDS [--never WORDS]] SOCKET COMMAND [ARGUMENTS]\n",
               stderr);
    return 2;
  }
  const Result<Json> answer = run(request);
  if (!answer.has_value()) {
    std::fprintf(stderr, "%s\n", answer.error().text().c_str());
    return 1;
  }
  const std::string text = request.get.empty() ? answer->dump() : value_at(*answer, request.get);
  std::printf("%s\n", text.c_str());
  return 0;
}
