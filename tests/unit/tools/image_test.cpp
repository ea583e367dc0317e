// SPDX-License-Identifier: Apache-2.0
// migrationctl's commands over files: the pure parts, and the walk, checksums and conversions over a recorded stream.
#include "tests/unit/catch.hpp"
#include "tests/unit/protocol/stream_fixture.hpp"
#include "tools/migrationctl/checksums.hpp"
#include "tools/migrationctl/commands.hpp"
#include "tools/migrationctl/device_values.hpp"
#include "tools/migrationctl/image_walk.hpp"
#include "tools/migrationctl/memory_map.hpp"
#include "tools/migrationctl/memory_picture.hpp"

#include <sys/stat.h>

#include <filesystem>
#include <fstream>

using namespace migrationd;
using namespace migrationd::ctl;

namespace {

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "migrationctl-test-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string file(const std::string& name) const { return path_ / name; }
  std::string file_with(const std::string& name, ByteView bytes) const {
    std::ofstream(file(name), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return file(name);
  }

 private:
  std::filesystem::path path_;
};

struct Seen {
  WalkedImage image;
  MemoryMap memory;
  Result<void> result;
};

Seen walk(const std::string& path) {
  auto stop = StopSource::make();
  REQUIRE(stop.has_value());
  auto opened = open_image(path);
  REQUIRE(opened.has_value());
  Seen seen;
  seen.result = walk_image(*opened, seen.memory, **stop, seen.image);
  return seen;
}

void convert_to(const std::string& from, const std::string& to, const std::string& kind, const std::string& xml = {}) {
  const auto code = convert({}, {from, to, kind, xml});
  INFO((code ? "" : code.error().text()));
  REQUIRE(code.has_value());
  CHECK(*code == exit_done);
}

Bytes read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const ByteView view = as_bytes(text);
  return {view.begin(), view.end()};
}

Bitmap pages(std::size_t count, std::initializer_list<std::size_t> set) {
  Bitmap out(count);
  for (const std::size_t one : set) out.set(one);
  return out;
}

}  // namespace

TEST_CASE("MemoryPicture.shows_none_some_and_all") {
  Bitmap data = pages(16, {4, 8, 9, 12, 13, 14});
  data.set_range(0, 4);
  const Picture picture = draw(data, 4, 1, PictureStyle::ascii);
  CHECK(picture.pages_per_cell == 4);
  REQUIRE(picture.rows.size() == 1);
  CHECK(picture.rows[0] == "#.:o");
  CHECK(draw(pages(4, {}), 4, 1, PictureStyle::ascii).rows[0] == "    ");
  // One page of very many is seen, and one zero page among many too.
  CHECK(draw(pages(100000, {77777}), 1, 1, PictureStyle::ascii).rows[0] == ".");
  Bitmap almost(100000);
  almost.set_all();
  almost.clear(3);
  CHECK(draw(almost, 1, 1, PictureStyle::ascii).rows[0] == "o");
}

TEST_CASE("MemoryPicture.rows_are_wrapped_and_bounded") {
  const Picture small = draw(pages(6, {5}), 4, 8, PictureStyle::ascii);
  CHECK(small.pages_per_cell == 1);
  CHECK(small.rows == std::vector<std::string>{"    ", " #"});
  const Picture large = draw(Bitmap(std::size_t{1} << 20), 64, 16, PictureStyle::blocks);
  CHECK(large.rows.size() == 16);
  CHECK(large.pages_per_cell == 1024);
  CHECK(draw(Bitmap(0), 64, 16, PictureStyle::ascii).rows.empty());
}

TEST_CASE("MemoryPicture.shades_need_a_terminal_with_UTF_8") {
  CHECK(picture_style(true, nullptr, nullptr, "de_DE.UTF-8") == PictureStyle::blocks);
  CHECK(picture_style(true, nullptr, nullptr, "en_US.utf8") == PictureStyle::blocks);
  CHECK(picture_style(false, nullptr, nullptr, "de_DE.UTF-8") == PictureStyle::ascii);
  CHECK(picture_style(true, nullptr, nullptr, "C") == PictureStyle::ascii);
  CHECK(picture_style(true, "C", nullptr, "de_DE.UTF-8") == PictureStyle::ascii);
  CHECK(picture_style(true, "", "C.UTF-8", "C") == PictureStyle::blocks);
  CHECK(picture_style(true, nullptr, nullptr, nullptr) == PictureStyle::ascii);
}

TEST_CASE("Checksums.lines_are_read_strictly") {
  const std::string digest(32, 'a');
  const auto line = parse_sums_line("17 " + digest);
  REQUIRE(line.has_value());
  CHECK(line->chunk == 17);
  CHECK(line->digest == digest);
  const std::vector<std::string> wrong{"",
                                       digest,
                                       "17",
                                       "17 ",
                                       "17 abc",
                                       "17  " + digest,
                                       "-1 " + digest,
                                       "x " + digest,
                                       "17 " + digest + "0",
                                       "17 " + std::string(32, 'A'),
                                       "99999999999999999999 " + digest};
  for (const std::string& bad : wrong) {
    INFO(bad);
    CHECK(parse_sums_line(bad).has_error());
  }
}

TEST_CASE("Checksums.find_every_changed_byte_and_pass_over_holes") {
  const Folder folder;
  const std::string path = folder.file("data");
  constexpr std::uint64_t size = 5 * sums_chunk_bytes + 100;
  std::ofstream(path).close();
  std::filesystem::resize_file(path, size);
  const auto poke = [&](std::uint64_t at, char value) {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(at));
    file.put(value);
  };
  poke(10, 'a');
  poke(2 * sums_chunk_bytes, 'b');
  poke(size - 1, 'c');
  const auto written = write_sums(path);
  REQUIRE(written.has_value());
  CHECK(*written == 3);
  const auto compare = [&] {
    const auto report = check_sums(path);
    REQUIRE(report.has_value());
    REQUIRE(report->has_value());
    return **report;
  };
  CHECK(compare().wrong == 0);
  poke(sums_chunk_bytes + 5, '\0');  // a hole that became zeros is the same content
  CHECK(compare().wrong == 0);
  for (const std::uint64_t at : {std::uint64_t{10}, sums_chunk_bytes + 7, 2 * sums_chunk_bytes, size - 1}) {
    poke(at, 'X');
    const SumsReport report = compare();
    CHECK(report.wrong == 1);
    CHECK(*report.first_wrong == at / sums_chunk_bytes * sums_chunk_bytes);
    poke(at, at == 10 ? 'a' : at == size - 1 ? 'c' : at == 2 * sums_chunk_bytes ? 'b' : '\0');
  }
  poke(10, '\0');  // a chunk with data that is all zero now
  CHECK(compare().wrong == 1);
  poke(10, 'a');
  std::filesystem::resize_file(path, size + 1);
  CHECK(check_sums(path).error().text() == "the file has 5242981 bytes, its checksums are of 5242980");
}

TEST_CASE("Checksums.that_are_cut_off_are_refused_and_missing_ones_told") {
  const Folder folder;
  const std::string path = folder.file_with("data", as_bytes("text"));
  const auto none = check_sums(path);
  REQUIRE(none.has_value());
  CHECK(!none->has_value());
  REQUIRE(write_sums(path).has_value());
  const Bytes whole = read_file(sums_path(path));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    folder.file_with("data.sums", ByteView(whole).first(size));
    CHECK(check_sums(path).has_error());
  }
}

TEST_CASE("ImageWalk.goes_through_a_recorded_stream") {
  const Folder folder;
  const Bytes stream = test::fixture("qemu-7.2-pc.gz");
  const Seen seen = walk(folder.file_with("plain", stream));
  REQUIRE(seen.result.has_value());
  CHECK(seen.image.configuration->machine_name == "pc-i440fx-7.2");
  REQUIRE(!seen.image.blocks.empty());
  CHECK(seen.image.blocks[0].block.name == "pc.ram");
  CHECK(seen.image.blocks[0].block.used_length == 16U << 20);
  REQUIRE(seen.image.devices.has_value());
  CHECK(seen.image.devices->proof == stream::TailProof::description);
}

TEST_CASE("ImageWalk.refuses_a_stream_cut_anywhere_or_with_more_behind_it") {
  const Folder folder;
  const Bytes stream = test::fixture("qemu-7.2-pc.gz");
  for (std::size_t cut = 1; cut < stream.size(); cut = cut * 3 / 2 + 1) {
    INFO(cut);
    const std::string path = folder.file_with("cut", ByteView(stream).first(stream.size() - cut));
    CHECK(walk(path).result.has_error());
  }
  Bytes longer = stream;
  longer.push_back(std::byte{1});
  CHECK(walk(folder.file_with("longer", longer)).result.has_error());
}

TEST_CASE("DeviceValues.have_the_names_and_values_of_the_description") {
  const Folder folder;
  const Seen seen = walk(folder.file_with("plain", test::fixture("qemu-7.2-pc.gz")));
  REQUIRE(seen.result.has_value());
  const auto devices = describe_devices(*seen.image.devices);
  const auto timer = std::find_if(devices.begin(), devices.end(), [](const auto& one) { return one.name == "timer"; });
  REQUIRE(timer != devices.end());
  REQUIRE(timer->values.has_value());
  CHECK(timer->values->contains("cpu_ticks_offset"));
  CHECK((*timer->values)["cpu_ticks_offset"].is_number());
  for (const auto& one : devices) {
    INFO(one.name);
    CHECK(one.values.has_value());
  }
  CHECK(values_text(*timer->values, 2).find("  cpu_ticks_offset = ") != std::string::npos);
}

TEST_CASE("DeviceValues.of_every_kind") {
  const std::string text = R"({"devices": [{"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": [
      {"name": "flag", "type": "bool", "size": 1}, {"name": "minus", "type": "int32", "size": 4},
      {"name": "list", "array_len": 2, "type": "uint16", "size": 2}, {"name": "raw", "type": "buffer", "size": 3},
      {"name": "s", "array_len": 2, "type": "struct", "size": 1, "struct":
         {"vmsd_name": "inner", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1}]}}]}]})";
  stream::DeviceTailContents contents;
  contents.description = text;
  stream::DeviceSection section;
  section.name = "d";
  section.version_id = 1;
  for (const int byte : {1, 0xff, 0xff, 0xff, 0xfe, 0, 1, 1, 0, 0xab, 0xcd, 0xef, 5, 6})
    section.body.push_back(static_cast<std::byte>(byte));
  contents.sections.push_back(section);
  const auto devices = describe_devices(contents);
  REQUIRE(devices.size() == 1);
  REQUIRE(devices[0].values.has_value());
  CHECK(devices[0].values->dump() == R"({"flag":true,"minus":-2,"list":[1,256],"raw":"abcdef","s":[{"x":5},{"x":6}]})");
  // A body that is longer than described is shown as not described, not in part.
  contents.sections[0].body.push_back(std::byte{0});
  CHECK(!describe_devices(contents)[0].values.has_value());
}

TEST_CASE("Convert.there_and_back_is_the_same_machine_and_holes_stay_holes") {
  const Folder folder;
  const std::string plain = folder.file_with("plain", test::fixture("qemu-7.2-pc.gz"));
  const std::string xml = folder.file_with("xml", as_bytes("<domain/>\n"));
  convert_to(plain, folder.file("mapped"), "mapped-ram");
  convert_to(folder.file("mapped"), folder.file("sparse"), "libvirt-sparse", xml);
  convert_to(folder.file("sparse"), folder.file("raw"), "libvirt-raw");
  convert_to(folder.file("raw"), folder.file("again"), "mapped-ram");
  convert_to(folder.file("again"), folder.file("plain2"), "plain");
  convert_to(folder.file("plain2"), folder.file("third"), "mapped-ram");
  CHECK(read_file(folder.file("mapped")) == read_file(folder.file("again")));
  CHECK(read_file(folder.file("mapped")) == read_file(folder.file("third")));
  const Seen before = walk(plain);
  const Seen after = walk(folder.file("sparse"));
  REQUIRE(after.result.has_value());
  CHECK(before.image.devices->sections == after.image.devices->sections);
  struct stat about {};
  REQUIRE(::stat(folder.file("mapped").c_str(), &about) == 0);
  CHECK(about.st_size > (16 << 20));
  CHECK(about.st_blocks * 512 < (4 << 20));
}

TEST_CASE("Convert.leaves_something_incomplete_when_the_input_is") {
  const Folder folder;
  const Bytes stream = test::fixture("qemu-7.2-pc.gz");
  const std::string cut = folder.file_with("cut", ByteView(stream).first(stream.size() - 100));
  const std::string xml = folder.file_with("xml", as_bytes("<domain/>\n"));
  for (const std::string kind : {"plain", "mapped-ram", "libvirt-raw", "libvirt-sparse"}) {
    INFO(kind);
    CHECK(convert({}, {cut, folder.file("out"), kind, xml}).has_error());
    const auto opened = open_image(folder.file("out"));
    REQUIRE(opened.has_value());
    CHECK(opened->image.kind == stream::ImageKind::incomplete);
  }
}

TEST_CASE("Convert.refuses_to_overwrite_its_input") {
  const Folder folder;
  const std::string plain = folder.file_with("plain", test::fixture("qemu-7.2-pc.gz"));
  std::filesystem::create_symlink(plain, folder.file("link"));
  CHECK(convert({}, {plain, folder.file("link"), "mapped-ram", ""}).error().text() ==
        "input and output are the same file");
  CHECK(walk(plain).result.has_value());
}
