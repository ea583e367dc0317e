// SPDX-License-Identifier: Apache-2.0
//
// The machine into a file and out of one. The settings that this needs are the file's, not the daemon's: they are put
// back when it has ended.
#include "tools/migrationctl/checksums.hpp"
#include "tools/migrationctl/commands.hpp"
#include "tools/migrationctl/file_access.hpp"
#include "tools/migrationctl/image_writer.hpp"

#include <fmt/format.h>

#include <filesystem>

namespace migrationd::ctl {

namespace {

// Every page once and as fast as the disk takes it; nobody answers from a file.
constexpr const char* unwanted_capabilities[] = {"xbzrle", "postcopy-ram", "return-path", "switchover-ack",
                                                 "zero-copy-send"};

class BorrowedSettings {
 public:
  explicit BorrowedSettings(QmpClient& client) : client_(client) {}

  Result<void> take(const FileOptions& options, bool mapped) {
    MD_TRY(const Json capabilities, client_.execute("query-migrate-capabilities"));
    MD_TRY(const Json parameters, client_.execute("query-migrate-parameters"));
    Json wanted = Json::array();
    const auto want = [&](std::string_view name, bool state) {
      for (const Json& one : capabilities) {
        if (one.value("capability", "") != name || one.value("state", false) == state) continue;
        wanted.push_back({{"capability", name}, {"state", state}});
        capabilities_.push_back(one);
      }
    };
    for (const char* name : unwanted_capabilities) want(name, false);
    // Several workers on one file: only where each page has its place.
    const bool several = mapped && options.workers > 1;
    want("multifd", several);
    want("mapped-ram", mapped);
    MD_CHECK(client_.execute("migrate-set-capabilities", {{"capabilities", std::move(wanted)}}));
    Json values{{"max-bandwidth", 0}, {"direct-io", options.direct}};
    if (several) values["multifd-channels"] = options.workers;
    // A page that has its place is as long as any other.
    if (mapped && parameters.contains("multifd-compression")) values["multifd-compression"] = "none";
    for (const auto& [name, value] : values.items()) parameters_[name] = parameters.at(name);
    MD_CHECK(client_.execute("migrate-set-parameters", std::move(values)));
    return {};
  }

  // A migration that goes on keeps them, for capabilities cannot change meanwhile.
  Result<void> give_back() {
    // In this order: with mapped-ram on, a codec is refused.
    if (!capabilities_.empty())
      MD_CHECK(client_.execute("migrate-set-capabilities", {{"capabilities", capabilities_}}));
    if (!parameters_.empty()) MD_CHECK(client_.execute("migrate-set-parameters", parameters_));
    return {};
  }

 private:
  QmpClient& client_;
  Json capabilities_ = Json::array();
  Json parameters_ = Json::object();
};

// The structured form takes every name, also one with ",offset=" in it. The daemon's directory is another one than
// ours.
Json file_address(const std::string& path, std::uint64_t offset) {
  const std::string absolute = std::filesystem::absolute(path);
  const Json address{{"transport", "file"}, {"filename", absolute}, {"offset", offset}};
  return {{"channels", Json::array({Json{{"channel-type", "main"}, {"addr", address}}})}};
}

// How the stream lies in the file.
struct Layout {
  bool mapped = true;
  std::uint64_t offset = 0;
};

Result<int> run(QmpClient& client, const Output& output, const FileOptions& options, Layout layout, bool incoming) {
  BorrowedSettings settings(client);
  auto taken = settings.take(options, layout.mapped);
  Json arguments = file_address(options.path, layout.offset);
  if (incoming) arguments["exit-on-error"] = false;
  auto started = taken ? client.execute(incoming ? "migrate-incoming" : "migrate", std::move(arguments))
                       : Result<Json>(taken.error());
  auto code = started ? watch_migration(client, output, incoming) : Result<int>(started.error());
  if (code && *code == exit_interrupted) return code;
  auto given_back = settings.give_back();
  if (!code) return code;
  if (!given_back) return std::move(given_back).error().with("put the daemon's settings back");
  return code;
}

// By what the file is; one that we may not read (the daemon may) is taken for what save writes.
bool is_mapped(const std::string& path) {
  const auto opened = open_image(path);
  return !opened || opened->image.has_places() || opened->image.kind == stream::ImageKind::incomplete;
}

// A save image as libvirt writes one: the header comes first, marked as unfinished, the daemon writes the stream behind
// it. Whoever dies in between leaves an image that libvirt and migrationd call incomplete.
Result<int> save_for_libvirt(QmpClient& client, const Output& output, const FileOptions& options) {
  MD_TRY(const std::string xml, read_text(options.libvirt_xml, stream::save_image_data_max));
  MD_TRY(const Json status, client.execute("query-status"));
  stream::NewSaveImage wanted;
  wanted.xml = xml;
  wanted.format = options.image_format == "sparse" ? stream::SaveImageFormat::sparse : stream::SaveImageFormat::raw;
  wanted.was_running = status.value("running", false);
  MD_TRY(LibvirtImage image, LibvirtImage::begin(options.path, wanted));
  MD_TRY(const int code, run(client, output, options, {image.sparse(), image.stream_offset()}, false));
  // The daemon syncs before it says completed.
  if (code == exit_done) MD_CHECK(image.finish());
  if (code == exit_interrupted) {
    fmt::print(stderr, "migrationctl: the image stays marked as incomplete, whatever becomes of the migration\n");
  }
  return code;
}

}  // namespace

Result<int> save(QmpClient& client, const Output& output, const FileOptions& options) {
  MD_TRY(const int code, options.libvirt_xml.empty() ? run(client, output, options, {}, false)
                                                     : save_for_libvirt(client, output, options));
  if (code != exit_done || !options.checksum) return code;
  auto sums = write_sums(options.path);
  if (!sums) return std::move(sums).error().with("the file is saved, but its checksums are not");
  return code;
}

Result<int> load(QmpClient& client, const Output& output, const FileOptions& options) {
  return run(client, output, options, {is_mapped(options.path), 0}, true);
}

}  // namespace migrationd::ctl
